"""What was published, the scores that profiles should reach, and the types that read them."""
