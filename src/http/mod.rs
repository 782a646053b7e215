//! Stage 1: a request arrives.
