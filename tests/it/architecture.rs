//! The shape of the source: which stage may import which, and where `unsafe` may stand.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The stages from the outermost inwards. One imports only those that stand after it; those of one
/// line do not import each other. The executor takes jobs from the queue, so it stands above it.
const STAGES: &[&[&str]] = &[
    &["http"],
    &["validate"],
    &["executor"],
    &["queue", "webhooks", "export"],
    &["store", "blobs"],
    &["serve"],
    &["train"],
    &["artifacts"],
];

/// Modules that know no stage.
const DOMAIN: &[&str] = &[
    "api_key",
    "atomic_file",
    "base_models",
    "clock",
    "config",
    "dataset",
    "device",
    "error_code",
    "file",
    "graders",
    "hex",
    "ids",
    "job",
    "model",
    "project",
    "reason",
    "repeated_key",
    "upload",
    "webhook",
];

/// Wires everything together, so it may import everything, and nothing imports it.
const OUTERMOST: &str = "cli";

/// The only folder whose code may be `unsafe`.
const UNSAFE_FOLDER: &str = "train/backend/cpu";

#[test]
fn a_stage_imports_only_what_stands_below_it() {
    let mut violations = Vec::new();
    for (path, code) in sources() {
        let Some(module) = module_of(&path) else {
            continue;
        };
        for imported in imports(&code, depth_of(&path)) {
            if !may_import(&module, &imported) {
                violations.push(format!("src/{}: imports {imported}", path.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_top_level_module_has_its_place_in_the_order() {
    for (path, _code) in sources() {
        if let Some(module) = module_of(&path) {
            let is_placed =
                module == OUTERMOST || DOMAIN.contains(&module.as_str()) || rank(&module).is_some();
            assert!(is_placed, "src/{}: add {module} to the order of stages", path.display());
        }
    }
}

#[test]
fn unsafe_code_stands_only_in_the_cpu_kernels() {
    for (path, code) in sources() {
        if path.starts_with(UNSAFE_FOLDER) {
            continue;
        }
        let line = code.lines().position(|line| has_word(line, "unsafe"));
        assert!(line.is_none(), "src/{}:{}: unsafe", path.display(), line.unwrap_or_default() + 1);
    }
}

#[test]
fn the_search_finds_imports_however_they_are_written() {
    let code = without_comments(
        "use crate::store::{Store, sqlite};\n\
         // use crate::commented;\n\
         use crate::{job::Job, queue::{self, Queue}, ids};\n\
         fn f() -> crate::serve::Answer { \"see crate\" }\n\
         use super::super::train::Engine; use super::super::rows;\n",
    );
    let found: Vec<String> = imports(&code, 2).into_iter().collect();
    assert_eq!(found, ["ids", "job", "queue", "serve", "store", "train"]);
    assert!(imports("use super::train::x;", 2).is_empty(), "a module beside this one");
    assert!(may_import("executor", "queue") && !may_import("queue", "executor"));
    assert!(may_import("http", "job") && !may_import("job", "http"));
    assert!(!may_import("store", "blobs") && !may_import("serve", "cli"));
    assert!(has_word("unsafe {", "unsafe") && !has_word("deny(unsafe_code)", "unsafe"));
}

/// Every source file: its path below `src`, and its text without comments.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a readable source file");
                let below = path.strip_prefix(&root).expect("below the root").to_owned();
                found.push((below, without_comments(&text)));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// Blanks what follows `//` on each line. Text that holds `://` keeps it.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        let comment = line
            .match_indices("//")
            .map(|(at, _slashes)| at)
            .find(|at| !line[..*at].ends_with(':'));
        code.push_str(&line[..comment.unwrap_or(line.len())]);
        code.push('\n');
    }
    code
}

/// The top-level module that a file belongs to; none for `lib.rs` and `main.rs`.
fn module_of(path: &Path) -> Option<String> {
    let first = path.iter().next()?.to_str()?;
    match first {
        "lib.rs" | "main.rs" => None,
        _ => Some(first.trim_end_matches(".rs").to_owned()),
    }
}

/// How many `super::` lead from a file's module to the crate's root.
fn depth_of(path: &Path) -> usize {
    let parts = path.iter().count();
    if path.ends_with("mod.rs") { parts - 1 } else { parts }
}

/// The top-level modules that a file names: after `crate::`, in the braces after it, or after
/// enough `super::`.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, matched) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + matched.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(names_of_group(group)),
            None => found.extend(first_word(rest)),
        }
    }
    let mut rest = code;
    while let Some(at) = rest.find("super::") {
        rest = &rest[at..];
        let mut levels = 0;
        while let Some(after) = rest.strip_prefix("super::") {
            rest = after;
            levels += 1;
        }
        let is_top_level = |name: &String| rank(name).is_some() || DOMAIN.contains(&name.as_str());
        if levels >= depth {
            found.extend(first_word(rest).filter(is_top_level));
        }
    }
    found
}

/// The first words of the items of a `{…}` group whose opening brace has been read.
fn names_of_group(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut nesting = 0;
    let mut begins_item = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => nesting += 1,
            '}' if nesting == 0 => return names,
            '}' => nesting -= 1,
            ',' if nesting == 0 => begins_item = true,
            _ if begins_item && !character.is_whitespace() => {
                names.extend(first_word(&group[at..]));
                begins_item = false;
            }
            _ => {}
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

fn rank(module: &str) -> Option<usize> {
    STAGES.iter().position(|stages| stages.contains(&module))
}

fn may_import(module: &str, imported: &str) -> bool {
    if module == imported || module == OUTERMOST || DOMAIN.contains(&imported) {
        return true;
    }
    match (rank(module), rank(imported)) {
        (Some(of_module), Some(of_imported)) => of_module < of_imported,
        // What is left: the domain importing a stage, or anything importing the outermost layer.
        _ => false,
    }
}
