//! The store on SQLite, with WAL.
