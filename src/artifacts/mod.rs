//! Stage 7: the files that a job leaves behind.
