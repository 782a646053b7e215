//! Tables of tiles.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::attention_tiles::{AttentionTiles, TILE_ROWS, TileTable};
use crate::train::backend::Segment;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn tiles_visit_each_pair_that_a_query_sees_once_and_no_tile_for_nothing(
        lengths in prop::collection::vec((1usize..200, 0usize..3), 1..6),
        window in prop::option::of(1usize..150),
    ) {
        // Each segment stands for itself, continues the one before it, or branches off the first.
        let mut segments: Vec<Segment> = Vec::new();
        for (length, kind) in lengths {
            let start = segments.last().map_or(0, |last| last.rows.end);
            let before = match (kind, segments.last()) {
                (1, Some(last)) => last.seen().collect(),
                (2, Some(_)) => vec![segments[0].rows.clone()],
                _ => Vec::new(),
            };
            segments.push(Segment { rows: start..start + length, before });
        }
        let tokens = segments[segments.len() - 1].rows.end;
        let mut want = BTreeMap::new();
        for segment in &segments {
            let text: Vec<usize> = segment.seen().flatten().collect();
            for query in segment.rows.clone() {
                let position = text.len() - (segment.rows.end - query);
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                for key in &text[first..=position] {
                    *want.entry((query, *key)).or_insert(0) += 1;
                }
            }
        }
        let tiles = AttentionTiles::new(&segments, window);
        for (table, has_queries) in [(&tiles.queries, true), (&tiles.keys, false)] {
            prop_assert_eq!(pairs(table, has_queries, window, tokens), want.clone());
        }
    }
}

/// How often each query meets each key that it sees.
fn pairs(
    table: &TileTable,
    has_queries: bool,
    window: Option<usize>,
    tokens: usize,
) -> BTreeMap<(usize, usize), i32> {
    let mut rows = vec![0; tokens];
    let mut met = BTreeMap::new();
    let mut visits_of_last = usize::MAX;
    for tile in &table.tiles {
        assert!(tile.rows <= TILE_ROWS && tile.visits <= visits_of_last);
        visits_of_last = tile.visits;
        rows[tile.row..tile.row + tile.rows].iter_mut().for_each(|count| *count += 1);
        for visit in &table.visits[tile.first_visit..tile.first_visit + tile.visits] {
            let (query, key) = if has_queries {
                (tile.row..tile.row + tile.rows, visit.row..visit.row + visit.rows)
            } else {
                (visit.row..visit.row + visit.rows, tile.row..tile.row + tile.rows)
            };
            let mut count = 0;
            for (i, query) in query.enumerate() {
                for (j, key) in key.clone().enumerate() {
                    let distance = visit.distance + i as i64 - j as i64;
                    let in_window = window.is_none_or(|window| distance < window as i64);
                    if distance >= 0 && in_window {
                        *met.entry((query, key)).or_insert(0) += 1;
                        count += 1;
                    }
                }
            }
            assert!(count > 0, "a visit for nothing: {tile:?} {visit:?}");
        }
    }
    assert!(rows.iter().all(|count| *count == 1), "every row is in one tile");
    met
}
