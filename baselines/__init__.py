"""The systems that are raced, and the drivers that build, run and measure them."""
