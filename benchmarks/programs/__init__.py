"""What people would write: each a program of its own, URL MEMBER... into a directory."""
