//! What is shipped has no fail points: nothing that builds it turns the feature on, and a binary without
//! the feature does not know their variable. `tests/shipped-binary` shows it of the release build.

use std::path::Path;

/// The feature.
const FEATURE: &str = "fail-points";

/// The environment variable that a binary with the feature reads.
const VARIABLE: &[u8] = b"HONE_FAIL_POINTS";

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn nothing_that_builds_hone_for_its_users_turns_fail_points_on() {
    let manifest = text("Cargo.toml");
    let (_before, features) = manifest.split_once("[features]").expect("features");
    let (features, _after) = features.split_once("\n[").expect("a section after them");
    let lines = features.lines().filter(|line| !line.starts_with('#'));
    let named: Vec<&str> = lines.filter(|line| line.contains(FEATURE)).collect();
    assert_eq!(named, ["fail-points = []"], "no other feature turns it on, nor a default");
    let pages = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"));
    let pages = pages.expect("docs").map(|page| page.expect("a page").file_name());
    let mut paths: Vec<String> =
        pages.map(|name| format!("docs/{}", name.to_string_lossy())).collect();
    assert!(paths.len() > 5, "{paths:?}");
    paths.extend(
        ["README.md", "docker/Dockerfile", "docker/Dockerfile.cuda", "docker/compose.yml"]
            .map(str::to_owned),
    );
    for path in paths {
        let text = text(&path);
        let turns_on = text.contains("--features fail-points") || text.contains("--all-features");
        assert!(!turns_on, "{path}");
    }
}

#[test]
fn a_binary_knows_fail_points_only_with_the_feature() {
    let binary = std::fs::read(env!("CARGO_BIN_EXE_hone")).expect("reads");
    let knows = binary.windows(VARIABLE.len()).any(|bytes| bytes == VARIABLE);
    assert_eq!(knows, cfg!(feature = "fail-points"));
}
