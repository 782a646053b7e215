//! Stage 4: one job at a time, in a trainer process of its own.
