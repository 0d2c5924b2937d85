"""Result files of any kind to tidy rows."""
