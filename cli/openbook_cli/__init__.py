"""The `openbook` command; each part is imported only when its verb runs."""
