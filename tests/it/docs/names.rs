//! What the pages name is there: tests, modules of tests, files and folders.

use std::fs;
use std::path::Path;

use super::pages::{Page, all_pages, code_spans, root};

/// How the paths begin that are looked up.
const FOLDERS: &[&str] = &["src/", "tests/", "benches/", "docker/", "examples/"];

/// A name in prose with so many underscores is that of a test.
const UNDERSCORES_OF_A_TEST: usize = 5;

#[test]
fn every_test_that_a_page_names_exists() {
    let tests = tests();
    let mut unknown = Vec::new();
    let mut count = 0;
    for page in all_pages() {
        for name in named_tests(&page) {
            count += 1;
            if !is_known(&tests, &name) {
                unknown.push(format!("{}: {name}", page.name()));
            }
        }
    }
    assert!(unknown.is_empty(), "no such tests:\n{}", unknown.join("\n"));
    assert!(count > 120, "{count} names: the search has missed some");
}

#[test]
fn every_path_that_a_page_names_exists() {
    let mut missing = Vec::new();
    let mut count = 0;
    for page in all_pages() {
        for (number, line) in page.prose() {
            for span in code_spans(line) {
                let is_path = FOLDERS.iter().any(|folder| span.starts_with(folder));
                if !is_path || span.contains(' ') {
                    continue;
                }
                count += 1;
                if !root().join(span).exists() {
                    missing.push(format!("{}:{number}: {span}", page.name()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no such paths:\n{}", missing.join("\n"));
    assert!(count > 60, "{count} paths: the search has missed some");
}

#[test]
fn a_name_is_a_test_or_a_module_that_has_tests() {
    let tests = tests();
    for known in ["a_name_is_a_test_or_a_module_that_has_tests", "docs::names", "serve::sample"] {
        assert!(is_known(&tests, known), "{known}");
    }
    // A part of a name, a function that is no test, a module without tests, a filter of another layout.
    for unknown in ["a_name_is", "is_known", "support::server", "http_uploads", "uploads"] {
        assert!(!is_known(&tests, unknown), "{unknown}");
    }
}

/// The tests that a page names: all names in columns "test", long names and modules in prose.
fn named_tests(page: &Page) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for table in page.tables() {
        let Some(column) = table[0].iter().position(|header| header == "test") else { continue };
        for row in &table[1..] {
            let spans = code_spans(&row[column]);
            assert!(!spans.is_empty(), "{}: {row:?} names no test", page.name());
            names.extend(spans.into_iter().map(str::to_owned));
        }
    }
    for (_number, line) in page.prose() {
        let words = match line.starts_with("<!--") {
            true => line.split_whitespace().collect(),
            false => code_spans(line),
        };
        let is_plain = |word: &str| {
            word.chars()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "_:".contains(it))
        };
        let is_test = |word: &&str| {
            is_plain(word)
                && (word.contains("::") || word.matches('_').count() >= UNDERSCORES_OF_A_TEST)
        };
        names.extend(words.into_iter().filter(is_test).map(str::to_owned));
    }
    names
}

/// Whether a name is that of a test, or the path of a module that has some.
fn is_known(tests: &[String], name: &str) -> bool {
    tests.iter().any(|test| {
        test.rsplit("::").next() == Some(name)
            || test.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"))
    })
}

/// Every test, by the path of its file's module and its name.
fn tests() -> Vec<String> {
    let mut tests = Vec::new();
    for folder in ["src", "tests/it"] {
        let folder = root().join(folder);
        collect(&folder, &folder, &mut tests);
    }
    assert!(tests.len() > 500, "the tests were not found");
    tests
}

fn collect(root: &Path, folder: &Path, tests: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            collect(root, &path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let below = path.strip_prefix(root).expect("below the root").with_extension("");
            let mut module: Vec<String> =
                below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
                module.pop();
            }
            let text = fs::read_to_string(&path).expect("a readable file");
            for name in test_names(&text) {
                let path = module.iter().map(String::as_str).chain([name]);
                tests.push(path.collect::<Vec<_>>().join("::"));
            }
        }
    }
}

/// Names of the functions below `#[test]` or `#[tokio::test]`.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let Some((_before, after)) = line.split_once("fn ").filter(|_| is_test) else { continue };
        if line.starts_with("//") || line.starts_with('#') {
            continue;
        }
        let end = after.find(|it: char| !it.is_alphanumeric() && it != '_');
        names.push(&after[..end.unwrap_or(after.len())]);
        is_test = false;
    }
    names
}
