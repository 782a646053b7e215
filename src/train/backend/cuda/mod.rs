//! Kernels of an own CUDA backend, and what the host computes for them. `docs/gpu-backend.md` is its design; so far only
//! tests use this folder.
//!
//! `kernels` holds CUDA C++, which NVRTC compiles at run time. Tests execute the same source on the host with the
//! emulator in `tests/cuda`, and compare with the CPU backend.

mod attention_tiles;
mod tests;
