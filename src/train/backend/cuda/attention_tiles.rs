//! Which tiles of queries and keys of a packed batch see each other: the tables that the kernels of attention
//! (`kernels/attention_backward.cu`) walk. Segments, shared prefixes, causal order and the window are all in
//! them, so that the kernels know only tiles and distances. They are the same for all layers of one window.

use std::cmp::Reverse;

use crate::train::backend::Segment;

/// Most rows of a tile; as `TILE` in the kernels.
pub const TILE_ROWS: usize = 64;

/// Consecutive rows of one segment, and their visits: `first_visit..first_visit + visits` of [`TileTable::visits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// First row in the batch.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Index of the first visit.
    pub first_visit: usize,
    /// Number of visits.
    pub visits: usize,
}

/// A tile of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// First row in the batch.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first query minus position of the first key, in the sequence.
    pub distance: i64,
}

/// Tiles of one side with their visits, in the order in which blocks should start: those with most visits first,
/// so that blocks end together.
#[derive(Debug, Default)]
pub struct TileTable {
    /// The tiles; together they have every row of the batch once.
    pub tiles: Vec<Tile>,
    /// The visits of all tiles.
    pub visits: Vec<Visit>,
}

/// The tables of both sides.
#[derive(Debug)]
pub struct AttentionTiles {
    /// Tiles of queries; they visit the tiles of keys that they see, in the order of the sequence.
    pub queries: TileTable,
    /// Tiles of keys; they visit the tiles of queries that see them, in the order of the batch.
    pub keys: TileTable,
}

/// Consecutive rows of one segment.
#[derive(Clone, Copy)]
struct TileRows {
    row: usize,
    rows: usize,
}

impl AttentionTiles {
    /// The tables of a batch's segments, whose prefixes are earlier segments.
    pub fn new(segments: &[Segment], window: Option<usize>) -> Self {
        let tokens = segments.last().map_or(0, |segment| segment.rows.end);
        // Prefixes are whole segments, so that their tiles are those of the segments.
        let mut tiles: Vec<TileRows> = Vec::with_capacity(tokens.div_ceil(TILE_ROWS));
        for segment in segments {
            for row in segment.rows.clone().step_by(TILE_ROWS) {
                tiles.push(TileRows { row, rows: (segment.rows.end - row).min(TILE_ROWS) });
            }
        }
        let mut of_queries = vec![Vec::new(); tiles.len()];
        let mut of_keys = vec![Vec::new(); tiles.len()];
        for segment in segments {
            let prefix = segment.keys() - segment.rows.len();
            for query_tile in tiles_of(&tiles, segment.rows.clone()) {
                let query = tiles[query_tile];
                let query_position = prefix + query.row - segment.rows.start;
                let mut position = 0;
                for range in segment.seen() {
                    for key_tile in tiles_of(&tiles, range.clone()) {
                        let key = tiles[key_tile];
                        let key_position = position + key.row - range.start;
                        let distance = query_position as i64 - key_position as i64;
                        if !sees_any(query, key, distance, window) {
                            continue;
                        }
                        of_queries[query_tile].push(Visit {
                            row: key.row,
                            rows: key.rows,
                            distance,
                        });
                        of_keys[key_tile].push(Visit {
                            row: query.row,
                            rows: query.rows,
                            distance,
                        });
                    }
                    position += range.len();
                }
            }
        }
        Self { queries: table(&tiles, of_queries), keys: table(&tiles, of_keys) }
    }
}

/// Indexes of the tiles of a segment's rows.
fn tiles_of(tiles: &[TileRows], rows: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let index = |row| tiles.partition_point(|tile| tile.row < row);
    index(rows.start)..index(rows.end)
}

/// Whether any query of one tile sees any key of the other.
fn sees_any(query: TileRows, key: TileRows, distance: i64, window: Option<usize>) -> bool {
    let (farthest, nearest) = (distance + query.rows as i64 - 1, distance - (key.rows as i64 - 1));
    farthest >= 0 && window.is_none_or(|window| nearest < window as i64)
}

fn table(tiles: &[TileRows], visits: Vec<Vec<Visit>>) -> TileTable {
    let mut both: Vec<_> = tiles.iter().zip(visits).collect();
    both.sort_by_key(|(_, visits)| Reverse(visits.len()));
    let mut table = TileTable::default();
    for (tile, visits) in both {
        table.tiles.push(Tile {
            row: tile.row,
            rows: tile.rows,
            first_visit: table.visits.len(),
            visits: visits.len(),
        });
        table.visits.extend(visits);
    }
    table
}
