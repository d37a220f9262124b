"""Where packets go: text, JSON lines and savefiles."""
