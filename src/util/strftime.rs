//! Times as Python's `datetime.strftime` writes them on Linux: the C library's directives in the locale C,
//! with its flags and widths, and Python's own `%f`. A time has no zone, so `%z` and `%Z` write nothing.

use chrono::{Datelike, NaiveDateTime, Timelike};

/// Widest field that a width may ask for.
const MAX_WIDTH: usize = 1024;

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `time` in the form of `format`. What is no directive stays as it is.
pub fn strftime(format: &str, time: &NaiveDateTime) -> String {
    let mut out = String::with_capacity(2 * format.len());
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let (directive, length) = Directive::read(rest);
        match directive.and_then(|directive| directive.write(time)) {
            Some(text) => out.push_str(&text),
            None => out.push_str(&rest[..length]),
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// `%`, flags, a width, and the letter that says what is written.
#[derive(Debug, Default)]
struct Directive {
    /// What numbers are filled up with: `_` spaces, `0` zeros, `-` nothing.
    padding: Option<char>,
    /// `^`: upper case.
    is_upper: bool,
    /// `#`: the other case.
    is_swapped: bool,
    width: Option<usize>,
    letter: char,
}

impl Directive {
    /// Reads a directive, and its length in bytes; one without a letter is none.
    fn read(text: &str) -> (Option<Self>, usize) {
        let mut directive = Self::default();
        for (index, character) in text.char_indices().skip(1) {
            match character {
                '_' | '-' if directive.width.is_none() => directive.padding = Some(character),
                '0' if directive.width.is_none() => directive.padding = Some('0'),
                '^' if directive.width.is_none() => directive.is_upper = true,
                '#' if directive.width.is_none() => directive.is_swapped = true,
                '0'..='9' => {
                    let digit = usize::from(character as u8 - b'0');
                    let width = directive.width.unwrap_or_default() * 10 + digit;
                    directive.width = Some(width.min(MAX_WIDTH));
                }
                // Other digits and eras, which the locale C does not have.
                'E' | 'O' if text[index + 1..].starts_with(|next: char| next.is_alphabetic()) => {}
                letter => {
                    directive.letter = letter;
                    return (Some(directive), index + letter.len_utf8());
                }
            }
        }
        (None, text.len())
    }

    /// What is written; `None` for an unknown letter.
    fn write(&self, time: &NaiveDateTime) -> Option<String> {
        let year = i64::from(time.year());
        let week = time.iso_week();
        let hour = i64::from(time.hour());
        let hour12 = (hour + 11) % 12 + 1;
        let weekday = i64::from(time.weekday().num_days_from_sunday());
        let from_monday = i64::from(time.weekday().num_days_from_monday());
        let day_of_year = i64::from(time.ordinal0());
        let is_afternoon = hour >= 12;
        Some(match self.letter {
            'Y' => self.number(year, '0', 1),
            'C' => self.number(year.div_euclid(100), '0', 2),
            'y' => self.number(year.rem_euclid(100), '0', 2),
            'G' => self.number(i64::from(week.year()), '0', 1),
            'g' => self.number(i64::from(week.year()).rem_euclid(100), '0', 2),
            'm' => self.number(i64::from(time.month()), '0', 2),
            'd' => self.number(i64::from(time.day()), '0', 2),
            'e' => self.number(i64::from(time.day()), '_', 2),
            'j' => self.number(day_of_year + 1, '0', 3),
            'H' => self.number(hour, '0', 2),
            'k' => self.number(hour, '_', 2),
            'I' => self.number(hour12, '0', 2),
            'l' => self.number(hour12, '_', 2),
            'M' => self.number(i64::from(time.minute()), '0', 2),
            'S' => self.number(i64::from(time.second()), '0', 2),
            's' => self.number(time.and_utc().timestamp(), '0', 1),
            'u' => self.number(from_monday + 1, '0', 1),
            'w' => self.number(weekday, '0', 1),
            'U' => self.number((day_of_year + 7 - weekday) / 7, '0', 2),
            'W' => self.number((day_of_year + 7 - from_monday) / 7, '0', 2),
            'V' => self.number(i64::from(week.week()), '0', 2),
            // Python's own, which takes neither flags nor widths.
            'f' if self.is_plain() => format!("{:06}", time.and_utc().timestamp_subsec_micros()),
            'A' => self.word(DAYS[weekday as usize], true),
            'a' => self.word(&DAYS[weekday as usize][..3], true),
            'B' => self.word(MONTHS[time.month0() as usize], true),
            'b' | 'h' => self.word(&MONTHS[time.month0() as usize][..3], true),
            'p' => self.word(if is_afternoon { "PM" } else { "AM" }, false),
            'P' => self.text(if is_afternoon { "pm" } else { "am" }.to_owned()),
            'Z' | 'z' => self.word("", true),
            'c' => self.compound("%a %b %e %H:%M:%S %Y", time),
            'D' | 'x' => self.compound("%m/%d/%y", time),
            'F' => self.compound("%Y-%m-%d", time),
            'R' => self.compound("%H:%M", time),
            'T' | 'X' => self.compound("%H:%M:%S", time),
            'r' => self.compound("%I:%M:%S %p", time),
            'n' => self.text("\n".to_owned()),
            't' => self.text("\t".to_owned()),
            '%' => self.text("%".to_owned()),
            _ => return None,
        })
    }

    fn is_plain(&self) -> bool {
        self.padding.is_none() && !self.is_upper && !self.is_swapped && self.width.is_none()
    }

    /// A number with at least so many digits, filled up with `padding` where no flag says otherwise.
    fn number(&self, number: i64, padding: char, digits: usize) -> String {
        let text = number.to_string();
        match self.padding.unwrap_or(padding) {
            '-' => padded(text, self.width.unwrap_or_default(), ' '),
            '_' => padded(text, self.width.unwrap_or(digits), ' '),
            _ => padded(text, self.width.unwrap_or(digits), '0'),
        }
    }

    /// A text in the case that the flags ask for. `#` turns a text to capitals, and to small letters what
    /// is in capitals already.
    fn word(&self, text: &str, swaps_to_upper: bool) -> String {
        let text = match (self.is_swapped, swaps_to_upper) {
            (true, false) => text.to_lowercase(),
            (true, true) => text.to_uppercase(),
            (false, _) if self.is_upper => text.to_uppercase(),
            (false, _) => text.to_owned(),
        };
        self.text(text)
    }

    /// What other directives write together.
    fn compound(&self, format: &str, time: &NaiveDateTime) -> String {
        let text = strftime(format, time);
        self.text(if self.is_upper { text.to_uppercase() } else { text })
    }

    /// A text, filled up to the width.
    fn text(&self, text: String) -> String {
        let filling = if self.padding == Some('0') { '0' } else { ' ' };
        padded(text, self.width.unwrap_or_default(), filling)
    }
}

fn padded(text: String, width: usize, filling: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let filling: String = std::iter::repeat_n(filling, missing).collect();
    filling + &text
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;

    fn at(year: i32, month: u32, day: u32) -> NaiveDateTime {
        let day = NaiveDate::from_ymd_opt(year, month, day).expect("a day");
        day.and_hms_micro_opt(15, 4, 5, 678).expect("a time")
    }

    /// What CPython writes on Linux for these.
    #[test]
    fn a_date_is_written_as_python_writes_it() {
        let time = at(2024, 7, 6);
        for (format, expected) in [
            ("%d %B %Y", "06 July 2024"),
            ("%d %b %Y", "06 Jul 2024"),
            ("%-d. %-m. %y", "6. 7. 24"),
            ("%A, %B %d, %Y", "Saturday, July 06, 2024"),
            ("%a %e|%_d|%3d", "Sat  6| 6|006"),
            ("%H:%M:%S.%f %p %I %l %-I", "15:04:05.000678 PM 03  3 3"),
            ("%Y-%m-%dT%H:%M:%S%z%Z", "2024-07-06T15:04:05"),
            ("%j %U %W %V %G %g %u %w", "188 26 27 27 2024 24 6 6"),
            (
                "%c|%x|%X|%D|%F|%R|%T|%r",
                "Sat Jul  6 15:04:05 2024|07/06/24|15:04:05|07/06/24|2024-07-06|15:04|15:04:05|03:04:05 PM",
            ),
            ("%^B %^a %#p %P %C", "JULY SAT pm pm 20"),
            ("100%% %", "100% %"),
            ("Heute ist der %d.", "Heute ist der 06."),
            ("", ""),
            ("%Q %ö", "%Q %ö"),
            ("%Ey %Od", "24 06"),
            (
                "%-5d|%-5Y|%_Y|%_G|%6B|%06B|%05%|%#Z|%#a|%#B|%#c|%^c|%^p|%^P|%#P|%+|%3n|%O|%E|%-f|%_5H|%-",
                "    6| 2024|2024|2024|  July|00July|0000%||SAT|JULY|Sat Jul  6 15:04:05 2024|SAT JUL  6 15:04:05 2024|PM|pm|pm|%+|  \n|%O|%E|%-f|   15|%-",
            ),
            (
                "%-j %_j %_m %_H %_I %_S %_y %-y %-H %-M %-S %-U %-e %0e %0k %_e %12F %^x %#F",
                "188 188  7 15  3  5 24 24 15 4 5 26 6 06 15  6   2024-07-06 07/06/24 2024-07-06",
            ),
        ] {
            assert_eq!(strftime(format, &time), expected, "{format}");
        }
    }

    #[test]
    fn weeks_and_days_are_counted_at_the_ends_of_years() {
        for (year, month, day, expected) in [
            (2021, 1, 1, "001 00 00 53 2020 20 5 5"),
            (2024, 12, 30, "365 52 53 01 2025 25 1 1"),
            (2023, 1, 1, "001 01 00 52 2022 22 7 0"),
            (2020, 12, 31, "366 52 52 53 2020 20 4 4"),
        ] {
            assert_eq!(strftime("%j %U %W %V %G %g %u %w", &at(year, month, day)), expected);
        }
    }
}
