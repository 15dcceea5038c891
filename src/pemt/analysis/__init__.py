"""What was learnt, for people to look at."""
