//! The fields that every upload has, in one request or in parts: file name, purpose and lifetime.

use super::Refusal;
use crate::domain::file::FilePurpose;
use crate::util::excerpt::excerpt;

/// Longest file name, without folders.
const MAX_NAME_CHARS: usize = 255;

/// Range of `expires_after`'s seconds.
const LIFETIME_SECONDS: std::ops::RangeInclusive<i64> = 3600..=2_592_000;

/// The file name without folders. It is shown, and never used as a path. `param` is the field that it came in.
///
/// # Errors
/// When it is too long.
pub fn base_name(name: &str, param: &str) -> Result<String, Refusal> {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let base: String = base.chars().filter(|c| !c.is_control()).collect();
    let length = base.chars().count();
    if length > MAX_NAME_CHARS {
        let message = format!(
            "the file's name has {length} characters: it may have {MAX_NAME_CHARS}, so send the file \
             under a shorter one"
        );
        return Err(Refusal::new(param, message));
    }
    let is_none = base.is_empty() || base == "." || base == "..";
    Ok(if is_none { "upload".to_owned() } else { base })
}

/// The purpose of an uploaded file.
pub fn purpose(text: Option<&str>) -> Result<FilePurpose, Refusal> {
    let allowed = || {
        let names: Vec<&str> = FilePurpose::UPLOADABLE.iter().map(|one| one.as_str()).collect();
        names.join(", ")
    };
    let Some(text) = text else {
        return Err(Refusal::new(
            "purpose",
            format!("purpose is missing; it can be {}", allowed()),
        ));
    };
    let known = FilePurpose::parse(text).filter(|one| FilePurpose::UPLOADABLE.contains(one));
    known.ok_or_else(|| {
        Refusal::new(
            "purpose",
            format!("the purpose is {:?}; hone takes {}", excerpt(text), allowed()),
        )
    })
}

/// `expires_after`: after how many seconds a file expires; `None`, which means never, when neither of the two
/// is there. `names` are the names of the two fields.
pub fn lifetime(
    anchor: Option<&str>,
    seconds: Option<&str>,
    names: [&str; 2],
) -> Result<Option<i64>, Refusal> {
    if anchor.is_none() && seconds.is_none() {
        return Ok(None);
    }
    if anchor != Some("created_at") {
        return Err(Refusal::new(names[0], "the anchor must be \"created_at\""));
    }
    let seconds = seconds.and_then(|text| text.parse::<i64>().ok());
    match seconds.filter(|seconds| LIFETIME_SECONDS.contains(seconds)) {
        Some(seconds) => Ok(Some(seconds)),
        None => {
            let (least, most) = (LIFETIME_SECONDS.start(), LIFETIME_SECONDS.end());
            let message = format!("the seconds must be a whole number from {least} to {most}");
            Err(Refusal::new(names[1], message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_control_characters_are_taken_off_a_name() {
        for (name, want) in [
            ("wire/train.jsonl", "train.jsonl"),
            ("..\\..\\x", "x"),
            ("/etc/passwd", "passwd"),
            ("a\r\nb\0c", "abc"),
            ("", "upload"),
            ("dir/", "upload"),
            ("dir/..", "upload"),
            (".", "upload"),
            ("..hidden", "..hidden"),
        ] {
            assert_eq!(base_name(name, "file").as_deref(), Ok(want));
        }
    }

    #[test]
    fn a_name_has_255_characters_at_most_without_its_folders() {
        let longest = "ä".repeat(255);
        assert_eq!(base_name(&format!("folder/{longest}"), "file"), Ok(longest.clone()));
        let refusal = base_name(&format!("{longest}x"), "file").expect_err("too long");
        assert_eq!(refusal.param, "file");
        assert!(refusal.message.contains("has 256 characters: it may have 255"), "{refusal:?}");
    }

    #[test]
    fn a_lifetime_is_an_hour_to_a_month() {
        let names = ["anchor", "seconds"];
        let read = |anchor, seconds| lifetime(anchor, seconds, names).map_err(|error| error.param);
        assert_eq!(read(None, None), Ok(None));
        assert_eq!(read(Some("created_at"), Some("3600")), Ok(Some(3600)));
        assert_eq!(read(Some("created_at"), Some("2592000")), Ok(Some(2_592_000)));
        assert_eq!(read(None, Some("2592000")), Err("anchor".to_owned()));
        for seconds in [None, Some("3599"), Some("2592001"), Some("-1"), Some("1e4"), Some("")] {
            assert_eq!(read(Some("created_at"), seconds), Err("seconds".to_owned()));
        }
        assert_eq!(read(Some("now"), Some("3600")), Err("anchor".to_owned()));
    }
}
