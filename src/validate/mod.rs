//! Stage 2: is it acceptable? Pure functions, called by `http` while a request is read.

pub mod upload;
