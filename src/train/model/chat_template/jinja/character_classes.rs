//! `str.isdigit` and the like: whether all characters of a text are of a class.

use super::unicode;

/// What a method says of a text; nothing is of no class but `isascii` and `isprintable`.
pub(crate) fn is(text: &str, method: &str) -> bool {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    match method {
        "isalpha" => all(unicode::is_alphabetic),
        "isalnum" => {
            all(|c| unicode::is_alphabetic(c) || unicode::is_digit(c) || unicode::is_numeric(c))
        }
        "isascii" => text.is_ascii(),
        "isdecimal" => all(unicode::is_decimal),
        "isdigit" => all(unicode::is_digit),
        "isnumeric" => all(unicode::is_numeric),
        "isspace" => all(unicode::is_space),
        "isprintable" => text.chars().all(unicode::is_printable),
        "isidentifier" => is_identifier(text),
        "islower" => is_of_case(text, char::is_lowercase),
        "isupper" => is_of_case(text, char::is_uppercase),
        "istitle" => is_title(text),
        _ => false,
    }
}

/// Whether a text has characters with a case, all of one.
pub(crate) fn is_of_case(text: &str, is: fn(char) -> bool) -> bool {
    let mut cased = text.chars().filter(|character| unicode::is_cased(*character)).peekable();
    cased.peek().is_some() && cased.all(is)
}

fn is_identifier(text: &str) -> bool {
    let is_start = |c: char| c == '_' || unicode::is_alphabetic(c);
    text.chars().next().is_some_and(is_start)
        && text.chars().all(|c| is_start(c) || unicode::is_decimal(c))
}

fn is_title(text: &str) -> bool {
    let mut has_word = false;
    let mut is_inside = false;
    for character in text.chars() {
        let is_lower = character.is_lowercase();
        let starts_word = unicode::is_cased(character) && !is_lower;
        if (starts_word && is_inside) || (is_lower && !is_inside) {
            return false;
        }
        is_inside = unicode::is_cased(character);
        has_word |= is_inside;
    }
    has_word
}
