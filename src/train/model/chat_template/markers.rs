//! Characters that stand for something while a template renders.

use std::ops::RangeInclusive;

/// Private-use characters that hone writes into texts itself: around a stand-in for a text, inside of a text that
/// is spelled like a control token, around a control token. A conversation that holds one of them is refused.
pub(super) const RESERVED: RangeInclusive<char> = '\u{e000}'..='\u{e006}';

/// Stands for a text of a message.
pub(super) const STAND_IN: &str = "\u{e000}0\u{e001}";
