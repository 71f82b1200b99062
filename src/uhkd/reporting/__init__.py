"""Create a self-contained HTML page from run folders, and its figures as files."""
