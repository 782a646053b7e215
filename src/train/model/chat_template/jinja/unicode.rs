//! Characters as Python's `str` classifies them.

use std::ops::RangeInclusive;

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use super::super::markers::RESERVED;

/// `str.isspace`.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// `str.isalpha`: letters, without the marks that Rust counts among them.
pub(crate) fn is_alphabetic(character: char) -> bool {
    character.general_category_group() == GeneralCategoryGroup::Letter
}

/// `str.isnumeric`.
pub(crate) fn is_numeric(character: char) -> bool {
    character.is_numeric() || is_numeral(character)
}

/// Han characters that have a numeric value.
fn is_numeral(character: char) -> bool {
    "〇一二三四五六七八九十百千万億兆壱弐参零壹贰叁肆伍陆柒捌玖拾佰仟两".contains(character)
}

/// `str.isdecimal`.
pub(crate) fn is_decimal(character: char) -> bool {
    character.general_category() == GeneralCategory::DecimalNumber
}

/// Digits that are written above, below or in circles: `str.isdigit` counts them, `isdecimal` not.
const OTHER_DIGITS: &[RangeInclusive<char>] = &[
    '\u{b2}'..='\u{b3}',
    '\u{b9}'..='\u{b9}',
    '\u{1369}'..='\u{1371}',
    '\u{19da}'..='\u{19da}',
    '\u{2070}'..='\u{2070}',
    '\u{2074}'..='\u{2079}',
    '\u{2080}'..='\u{2089}',
    '\u{2460}'..='\u{2468}',
    '\u{2474}'..='\u{247c}',
    '\u{2488}'..='\u{2490}',
    '\u{24ea}'..='\u{24ea}',
    '\u{24f5}'..='\u{24fd}',
    '\u{24ff}'..='\u{24ff}',
    '\u{2776}'..='\u{277e}',
    '\u{2780}'..='\u{2788}',
    '\u{278a}'..='\u{2792}',
    '\u{1f100}'..='\u{1f10a}',
];

/// `str.isdigit`.
pub(crate) fn is_digit(character: char) -> bool {
    is_decimal(character) || OTHER_DIGITS.iter().any(|range| range.contains(&character))
}

/// A decimal digit of any script as the one of ASCII; other characters stay.
pub(crate) fn ascii_digit(character: char) -> char {
    if character.is_ascii() || !is_decimal(character) {
        return character;
    }
    let code = u32::from(character);
    // Mathematical digits: five alphabets of ten, one behind the other.
    if let Some(offset) = code.checked_sub(0x1d7ce).filter(|offset| *offset < 50) {
        return char::from_digit(offset % 10, 10).unwrap_or(character);
    }
    // The ten digits of a script stand side by side, and none before its zero.
    let is_digit = |code: u32| char::from_u32(code).is_some_and(is_decimal);
    let value = (1..10).take_while(|back| is_digit(code - back)).last().unwrap_or(0);
    char::from_digit(value, 10).unwrap_or(character)
}

/// `str.isprintable`, which is what `repr` writes as it is. Characters that stand for something while
/// a template renders are written as they are, too: they are found again in what it writes.
pub(crate) fn is_printable(character: char) -> bool {
    if character == ' ' || RESERVED.contains(&character) {
        return true;
    }
    !matches!(
        character.general_category_group(),
        GeneralCategoryGroup::Other | GeneralCategoryGroup::Separator
    )
}

/// The character at the beginning of a title: `ß` is `Ss`, `ǆ` is `ǅ`.
pub(crate) fn push_title(character: char, out: &mut String) {
    match character {
        'Ǆ' | 'ǅ' | 'ǆ' => out.push('ǅ'),
        'Ǉ' | 'ǈ' | 'ǉ' => out.push('ǈ'),
        'Ǌ' | 'ǋ' | 'ǌ' => out.push('ǋ'),
        'Ǳ' | 'ǲ' | 'ǳ' => out.push('ǲ'),
        other => {
            let mut upper = other.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
    }
}

/// The character at a position of a text in lower case. The sigma at the end of a word has a form of
/// its own.
pub(crate) fn push_lower(text: &str, position: usize, character: char, out: &mut String) {
    if character != 'Σ' {
        out.extend(character.to_lowercase());
        return;
    }
    let before = text[..position].chars().next_back();
    let after = text[position + character.len_utf8()..].chars().next();
    let is_last = before.is_some_and(is_cased) && !after.is_some_and(is_cased);
    out.push(if is_last { 'ς' } else { 'σ' });
}

/// Whether a character has a case, as `str.title` and `str.istitle` see it.
pub(crate) fn is_cased(character: char) -> bool {
    character.is_lowercase()
        || character.is_uppercase()
        || character.general_category() == GeneralCategory::TitlecaseLetter
}

/// `\w` of regular expressions: letters, numbers and underscores.
pub(crate) fn is_word(character: char) -> bool {
    character == '_' || is_alphabetic(character) || is_numeric(character)
}
