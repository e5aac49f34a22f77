"""`punch`: two people, one command each, and a connection."""
