"""The charts of the page, and their colours and labels."""
