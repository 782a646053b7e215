//! What replies of several resources share.

pub mod attachment;
pub mod event_stream;
