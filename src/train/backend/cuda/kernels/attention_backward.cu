// Backward of attention, without the matrix of scores in memory (Dao et al. 2022, "FlashAttention"): probabilities
// are computed again from the log-sum-exp of each row, which the forward pass saved. With the score
// s = scale · q·k, capped where there is a cap, and p = exp(s - log_sum):
//   gradient of v = pᵀ · g,  t = p · (g·v - mean) · slope of the cap · scale,  gradient of q = t · k, of k = tᵀ · q,
// where g is the gradient of the output and mean = output · g of the row (`attention_backward_means`).
//
// Two kernels, so that nothing is added atomically: a block of one has keys and adds up over the queries that see
// them, in a fixed order, all heads of queries that share the keys included; a block of the other has queries and
// adds up over keys. Both compute scores, at the price of 7 products in place of 5.
//
// Rows are cut into tiles of at most TILE rows, and the host says which tiles see each other (attention_tiles.rs):
// segments, shared prefixes, causal order and window all become visits of tiles at a distance. A block has four
// warps with 16 of its rows each. The rows' own operands stay in registers as fragments; tiles that are visited come
// through shared memory, the next one while the one before is worked on. Inputs are bf16, sums are f32.
//
// Matrices are [tokens, heads · head_dim], row-major; those of bf16 are given as vectors of 8. `head_dim` is a
// multiple of 8 and at most WIDTH, and columns beyond it are zeros in shared memory; WIDTH is 64 or 128. Dynamic
// shared memory: `stage_bytes(WIDTH)` twice.

#include "device.cuh"

constexpr int TILE = 64;
constexpr int THREADS = 128;
constexpr float LOG2_E = 1.44269504f;

// The shape of attention; as `AttentionShape` in Rust.
struct AttentionShape {
    int tokens, heads, kv_heads, head_dim;
    float scale;
    // Keys that a query sees, itself included; INT_MAX where it sees all before it.
    int window;
    // 0 where scores are not capped.
    float soft_cap;
};

// Rows of the batch, and the tiles that they see or are seen by: visits `first_visit` to `first_visit + visits`.
struct Tile {
    int row, rows, first_visit, visits;
};

// A tile of the other side. `distance` is the position of the first query minus that of the first key.
struct Visit {
    int row, rows, distance;
};

// Rows of the matrices in global memory that become a tile in shared memory.
struct Rows {
    const uint4 *matrix;
    int row, rows;
    // Of the matrix, and of the head in it, in vectors.
    int stride, column;
};

// Two tiles, and two floats for each of their rows.
__device__ __forceinline__ constexpr int stage_bytes(int width) { return 2 * TILE * width * 2 + 2 * TILE * 4; }

// Where a stage's tiles and floats begin in shared memory, in bytes.
template <int WIDTH> struct Stage {
    unsigned first, second, log_sums, means;

    __device__ __forceinline__ explicit Stage(int number) {
        first = number * stage_bytes(WIDTH);
        second = first + TILE * WIDTH * 2;
        log_sums = second + TILE * WIDTH * 2;
        means = log_sums + TILE * 4;
    }
};

__device__ __forceinline__ float float_at(unsigned offset, int index) {
    return reinterpret_cast<const float *>(shared_memory() + offset)[index];
}

// Where vector `column` of a row of a tile is. Its place in the row is its number with the row's mixed in, so that
// eight rows that are read at once lie in different banks. Rows begin at multiples of their length: the vector 2 k
// further on is at this offset ^ 32 k.
template <int WIDTH> __device__ __forceinline__ unsigned vector_at(unsigned tile, int row, int column) {
    return tile + row * (WIDTH * 2) + (column ^ (row % 8)) * 16;
}

// Begins to copy rows into a tile; what is beyond the rows or the head becomes zero.
template <int WIDTH> __device__ __forceinline__ void copy_rows(unsigned tile, const Rows &from, int head_dim) {
    for (int index = threadIdx.x; index < TILE * (WIDTH / 8); index += THREADS) {
        const int row = index / (WIDTH / 8), column = index % (WIDTH / 8);
        const bool is_wanted = row < from.rows && column * 8 < head_dim;
        const size_t start = static_cast<size_t>(from.row + row) * from.stride + from.column + column;
        copy_16_async(vector_at<WIDTH>(tile, row, column), from.matrix + (is_wanted ? start : 0), is_wanted);
    }
}

// The warp's 16 rows of a tile as left operands, one for each 16 columns.
template <int WIDTH> __device__ __forceinline__ void load_left(unsigned (&left)[WIDTH / 16][4], unsigned tile) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
    const unsigned start = vector_at<WIDTH>(tile, row, lane / 16);
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) load_matrices(left[k], start ^ 32 * k);
}

// products[16 x 16] = left · the 16 rows of the tile from `row` on, transposed.
template <int WIDTH>
__device__ __forceinline__ void multiply_by_rows(float (&products)[2][4], const unsigned (&left)[WIDTH / 16][4],
                                                 unsigned tile, int row) {
    const int lane = threadIdx.x % 32;
    const unsigned start = vector_at<WIDTH>(tile, row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
        unsigned right[4];
        load_matrices(right, start ^ 32 * k);
        multiply_accumulate(products[0], left[k], right[0], right[1]);
        multiply_accumulate(products[1], left[k], right[2], right[3]);
    }
}

// sums[16 x WIDTH] += left [16 x 16] · the 16 rows of the tile from `row` on.
template <int WIDTH>
__device__ __forceinline__ void add_product(float (&sums)[WIDTH / 8][4], const unsigned (&left)[4],
                                            unsigned tile, int row) {
    const int lane = threadIdx.x % 32;
    const unsigned start = vector_at<WIDTH>(tile, row + lane % 16, lane / 16);
#pragma unroll
    for (int column = 0; column < WIDTH / 16; column++) {
        unsigned right[4];
        load_matrices_transposed(right, start ^ 32 * column);
        multiply_accumulate(sums[2 * column], left, right[0], right[1]);
        multiply_accumulate(sums[2 * column + 1], left, right[2], right[3]);
    }
}

// Sums of products [16 x 16] as a left operand: both have the same layout.
__device__ __forceinline__ void as_left(unsigned (&left)[4], const float (&products)[2][4]) {
    left[0] = pack_bf16(products[0][0], products[0][1]);
    left[1] = pack_bf16(products[0][2], products[0][3]);
    left[2] = pack_bf16(products[1][0], products[1][1]);
    left[3] = pack_bf16(products[1][2], products[1][3]);
}

// q·k becomes the probability, and g·v the gradient of q·k.
__device__ __forceinline__ void score_backward(float &product, float &pull, float log_sum, float mean, bool is_visible,
                                               const AttentionShape &shape) {
    float score = product * shape.scale, slope = shape.scale;
    if (shape.soft_cap > 0.0f) {
        const float bent = tanhf(score / shape.soft_cap);
        score = shape.soft_cap * bent;
        slope *= 1.0f - bent * bent;
    }
    product = is_visible ? exp2_approximate((score - log_sum) * LOG2_E) : 0.0f;
    pull = product * (pull - mean) * slope;
}

// Whether the query sees the key that lies `distance` before it.
__device__ __forceinline__ bool sees(int distance, const AttentionShape &shape) {
    return distance >= 0 && distance < shape.window;
}

// Whether none of 16 queries sees any of 16 keys; `distance` is from the first key to the first query.
__device__ __forceinline__ bool sees_nothing(int distance, const AttentionShape &shape) {
    return distance + 15 < 0 || distance - 15 >= shape.window;
}

// Writes the warp's 16 rows of sums that are among the tile's.
template <int WIDTH>
__device__ __forceinline__ void write_rows(float *into, const float (&sums)[WIDTH / 8][4], const Tile &tile, int heads,
                                           int head, int head_dim) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int part = 0; part < WIDTH / 8; part++) {
        const int column = part * 8 + lane % 4 * 2;
        if (column >= head_dim) continue;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (row + 8 * half >= tile.rows) continue;
            const size_t start = (static_cast<size_t>(tile.row + row + 8 * half) * heads + head) * head_dim + column;
            *reinterpret_cast<float2 *>(into + start) = make_float2(sums[part][2 * half], sums[part][2 * half + 1]);
        }
    }
}

// means[head, token] = output · gradient of that row. Eight lanes have a row; `grid.x · 16` rows at least
// tokens · heads.
__global__ void __launch_bounds__(THREADS)
    attention_backward_means(AttentionShape shape, const uint4 *output, const uint4 *gradient, float *means) {
    const size_t rows = static_cast<size_t>(shape.tokens) * shape.heads;
    const size_t row = static_cast<size_t>(blockIdx.x) * (THREADS / 8) + threadIdx.x / 8;
    const int vectors = shape.head_dim / 8;
    float sum = 0.0f;
    for (int vector = threadIdx.x % 8; vector < vectors && row < rows; vector += 8) {
        const uint4 a = output[row * vectors + vector], b = gradient[row * vectors + vector];
        sum += unpack_low(a.x) * unpack_low(b.x) + unpack_high(a.x) * unpack_high(b.x);
        sum += unpack_low(a.y) * unpack_low(b.y) + unpack_high(a.y) * unpack_high(b.y);
        sum += unpack_low(a.z) * unpack_low(b.z) + unpack_high(a.z) * unpack_high(b.z);
        sum += unpack_low(a.w) * unpack_low(b.w) + unpack_high(a.w) * unpack_high(b.w);
    }
#pragma unroll
    for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (threadIdx.x % 8 == 0 && row < rows) means[row % shape.heads * shape.tokens + row / shape.heads] = sum;
}

// Gradients of keys and values, [tokens, kv_heads · head_dim]. A block for each tile of keys and each of their heads;
// the visits are of tiles of queries. Warps have keys as rows and queries as columns.
template <int WIDTH>
__global__ void __launch_bounds__(THREADS, 2)
    attention_backward_keys(AttentionShape shape, const Tile *tiles, const Visit *visits, const uint4 *queries,
                            const uint4 *keys, const uint4 *values, const uint4 *gradient, const float *log_sums,
                            const float *means, float *key_gradient, float *value_gradient) {
    const Tile tile = tiles[blockIdx.x];
    const int kv_head = blockIdx.y, group = shape.heads / shape.kv_heads, vectors = shape.head_dim / 8;
    const int lane = threadIdx.x % 32, first_key = threadIdx.x / 32 * 16;

    unsigned key_left[WIDTH / 16][4], value_left[WIDTH / 16][4];
    {
        Stage<WIDTH> stage(0);
        const int stride = shape.kv_heads * vectors, column = kv_head * vectors;
        copy_rows<WIDTH>(stage.first, {keys, tile.row, tile.rows, stride, column}, shape.head_dim);
        copy_rows<WIDTH>(stage.second, {values, tile.row, tile.rows, stride, column}, shape.head_dim);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        load_left<WIDTH>(key_left, stage.first);
        load_left<WIDTH>(value_left, stage.second);
        __syncthreads();
    }

    // Step s is visit s / group by head s % group of those that share the keys.
    const int steps = tile.visits * group;
    auto begin_copies = [&](int step) {
        const Visit visit = visits[tile.first_visit + step / group];
        const int head = kv_head * group + step % group;
        Stage<WIDTH> stage(step % 2);
        const int stride = shape.heads * vectors, column = head * vectors;
        copy_rows<WIDTH>(stage.first, {queries, visit.row, visit.rows, stride, column}, shape.head_dim);
        copy_rows<WIDTH>(stage.second, {gradient, visit.row, visit.rows, stride, column}, shape.head_dim);
        const int row = threadIdx.x % TILE;
        const bool is_wanted = row < visit.rows;
        const size_t start = static_cast<size_t>(head) * shape.tokens + visit.row + (is_wanted ? row : 0);
        const bool is_first_half = threadIdx.x < TILE;
        copy_4_async((is_first_half ? stage.log_sums : stage.means) + 4 * row,
                     (is_first_half ? log_sums : means) + start, is_wanted);
    };

    float key_sums[WIDTH / 8][4] = {}, value_sums[WIDTH / 8][4] = {};
    if (steps > 0) begin_copies(0);
    commit_copies();
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) begin_copies(step + 1);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        const Visit visit = visits[tile.first_visit + step / group];
        Stage<WIDTH> stage(step % 2);
        for (int first_query = 0; first_query < visit.rows; first_query += 16) {
            const int distance = visit.distance + first_query - first_key;
            if (sees_nothing(distance, shape)) continue;
            float scores[2][4] = {}, pulls[2][4] = {};
            multiply_by_rows<WIDTH>(scores, key_left, stage.first, first_query);
            multiply_by_rows<WIDTH>(pulls, value_left, stage.second, first_query);
#pragma unroll
            for (int element = 0; element < 8; element++) {
                const int part = element / 4, number = element % 4;
                const int key = lane / 4 + number / 2 * 8, column = part * 8 + lane % 4 * 2 + number % 2;
                const int query = first_query + column;
                // Queries beyond the visit's rows are zeros, their log-sum-exp and mean too: they add nothing.
                score_backward(scores[part][number], pulls[part][number], float_at(stage.log_sums, query),
                               float_at(stage.means, query), sees(distance + column - key, shape), shape);
            }
            unsigned probabilities[4], score_gradients[4];
            as_left(probabilities, scores);
            as_left(score_gradients, pulls);
            add_product<WIDTH>(value_sums, probabilities, stage.second, first_query);
            add_product<WIDTH>(key_sums, score_gradients, stage.first, first_query);
        }
        __syncthreads();
    }
    write_rows<WIDTH>(key_gradient, key_sums, tile, shape.kv_heads, kv_head, shape.head_dim);
    write_rows<WIDTH>(value_gradient, value_sums, tile, shape.kv_heads, kv_head, shape.head_dim);
}

// The gradient of queries, [tokens, heads · head_dim]. A block for each tile of queries and each head; the visits are
// of tiles of keys. Warps have queries as rows and keys as columns.
template <int WIDTH>
__global__ void __launch_bounds__(THREADS, 2)
    attention_backward_queries(AttentionShape shape, const Tile *tiles, const Visit *visits, const uint4 *queries,
                               const uint4 *keys, const uint4 *values, const uint4 *gradient, const float *log_sums,
                               const float *means, float *query_gradient) {
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads), vectors = shape.head_dim / 8;
    const int lane = threadIdx.x % 32, first_query = threadIdx.x / 32 * 16;

    unsigned query_left[WIDTH / 16][4], gradient_left[WIDTH / 16][4];
    {
        Stage<WIDTH> stage(0);
        const int stride = shape.heads * vectors, column = head * vectors;
        copy_rows<WIDTH>(stage.first, {queries, tile.row, tile.rows, stride, column}, shape.head_dim);
        copy_rows<WIDTH>(stage.second, {gradient, tile.row, tile.rows, stride, column}, shape.head_dim);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        load_left<WIDTH>(query_left, stage.first);
        load_left<WIDTH>(gradient_left, stage.second);
        __syncthreads();
    }
    // Those of the two rows that a lane has of each product; rows beyond the tile's are not written.
    float row_log_sums[2], row_means[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = min(first_query + lane / 4 + 8 * half, tile.rows - 1);
        const size_t start = static_cast<size_t>(head) * shape.tokens + tile.row + row;
        row_log_sums[half] = log_sums[start];
        row_means[half] = means[start];
    }

    auto begin_copies = [&](int step) {
        const Visit visit = visits[tile.first_visit + step];
        Stage<WIDTH> stage(step % 2);
        const int stride = shape.kv_heads * vectors, column = kv_head * vectors;
        copy_rows<WIDTH>(stage.first, {keys, visit.row, visit.rows, stride, column}, shape.head_dim);
        copy_rows<WIDTH>(stage.second, {values, visit.row, visit.rows, stride, column}, shape.head_dim);
    };

    float sums[WIDTH / 8][4] = {};
    if (tile.visits > 0) begin_copies(0);
    commit_copies();
    for (int step = 0; step < tile.visits; step++) {
        if (step + 1 < tile.visits) begin_copies(step + 1);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        const Visit visit = visits[tile.first_visit + step];
        Stage<WIDTH> stage(step % 2);
        for (int first_key = 0; first_key < visit.rows; first_key += 16) {
            const int distance = visit.distance + first_query - first_key;
            if (sees_nothing(distance, shape)) continue;
            float scores[2][4] = {}, pulls[2][4] = {};
            multiply_by_rows<WIDTH>(scores, query_left, stage.first, first_key);
            multiply_by_rows<WIDTH>(pulls, gradient_left, stage.second, first_key);
#pragma unroll
            for (int element = 0; element < 8; element++) {
                const int part = element / 4, number = element % 4;
                const int query = lane / 4 + number / 2 * 8, column = part * 8 + lane % 4 * 2 + number % 2;
                // Keys beyond the visit's rows are zeros, whose score may be far above the others.
                const bool is_visible = first_key + column < visit.rows && sees(distance + query - column, shape);
                score_backward(scores[part][number], pulls[part][number], row_log_sums[number / 2],
                               row_means[number / 2], is_visible, shape);
            }
            unsigned score_gradients[4];
            as_left(score_gradients, pulls);
            add_product<WIDTH>(sums, score_gradients, stage.first, first_key);
        }
        __syncthreads();
    }
    write_rows<WIDTH>(query_gradient, sums, tile, shape.heads, head, shape.head_dim);
}
