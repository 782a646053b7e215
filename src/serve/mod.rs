//! Stage 5: answer chat with a base model and an adapter.
