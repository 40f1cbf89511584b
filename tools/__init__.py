"""What developers run: see CONTRIBUTING.md."""
