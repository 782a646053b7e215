//! The seam between the decoder and the device: coarse operations, each with forward and backward.
