"""Pages of HTML that need no other file: the report of a folder, and the contact sheet of an evaluation."""
