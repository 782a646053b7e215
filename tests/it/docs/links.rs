//! Links inside the repository lead somewhere, and each page says for whom it is.

use std::collections::BTreeMap;
use std::path::Path;

use super::pages::{Page, all_pages, root, user_pages};

#[test]
fn every_link_of_a_page_leads_to_a_file_and_a_heading() {
    let mut dead = Vec::new();
    let mut count = 0;
    for page in all_pages() {
        for (number, line) in page.prose() {
            for link in links(line) {
                if link.contains("://") {
                    continue;
                }
                count += 1;
                if let Err(reason) = follow(&page, link) {
                    dead.push(format!("{}:{number}: {link}: {reason}", page.name()));
                }
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
    assert!(count > 30, "{count} links: the search has missed some");
}

#[test]
fn every_page_says_first_for_whom_it_is_and_readme_links_to_it() {
    let pages = user_pages();
    let readme = &pages[0];
    for page in &pages[1..] {
        let mut lines = page.text.lines();
        assert!(lines.next().is_some_and(|title| title.starts_with("# ")), "{}", page.name());
        let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
        assert!(first.starts_with("For whoever "), "{}: {first}", page.name());
        assert!(readme.text.contains(&format!("({})", page.name())), "{}", page.name());
    }
    assert!(readme.text.lines().count() <= 80, "README is one screen");
}

#[test]
fn a_dead_link_is_found() {
    let page = Page::read("docs/api.md");
    assert_eq!(follow(&page, "operating.md#metrics"), Ok(()));
    assert_eq!(follow(&page, "../README.md"), Ok(()));
    assert!(follow(&page, "nowhere.md").is_err() && follow(&page, "operating.md#no").is_err());
    assert_eq!(slug("From OpenAI's `fine-tuning` to hone"), "from-openais-fine-tuning-to-hone");
    assert_eq!(links("See [a](b.md#c), `[d](e)` and [f](../g)."), ["b.md#c", "../g"]);
}

/// Targets of the links of a line, outside of code spans.
fn links(line: &str) -> Vec<&str> {
    let outside = line.split('`').step_by(2);
    outside
        .flat_map(|text| text.split("](").skip(1).filter_map(|rest| rest.split(')').next()))
        .collect()
}

/// Whether a link of a page leads to something.
fn follow(page: &Page, link: &str) -> Result<(), String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let folder = page.path.parent().unwrap_or(Path::new(""));
    let path = match file {
        "" => root().join(&page.path),
        file => root().join(folder).join(file),
    };
    if !path.exists() {
        return Err("no such file".to_owned());
    }
    if anchor.is_empty() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    let anchors = anchors(&Page { path, text });
    if anchors.iter().any(|known| known == anchor) {
        return Ok(());
    }
    Err(format!("no such heading; there is {}", anchors.join(", ")))
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Page) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = page.prose().into_iter().filter(|(_number, line)| line.starts_with('#'));
    let anchor = |(_number, line): (usize, &str)| {
        let slug = slug(line.trim_start_matches('#').trim());
        let count = seen.entry(slug.clone()).or_default();
        *count += 1;
        if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) }
    };
    headings.map(anchor).collect()
}

fn slug(heading: &str) -> String {
    let kept = heading.chars().filter_map(|character| match character {
        ' ' => Some('-'),
        '-' | '_' => Some(character),
        _ if character.is_alphanumeric() => Some(character.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}
