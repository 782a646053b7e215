//! Stage 2: is it acceptable? Pure functions.
