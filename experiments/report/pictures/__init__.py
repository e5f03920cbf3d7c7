"""The pictures of a group, and how every picture is drawn."""
