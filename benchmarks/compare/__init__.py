"""Two revisions in turn, with an A/A control and an injected slowdown in every run."""
