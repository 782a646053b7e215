//! What replies of several resources share.

pub mod attachment;
