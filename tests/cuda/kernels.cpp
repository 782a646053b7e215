// Runs one kernel on the emulator: kernels NAME ORDER < INPUT > OUTPUT. Input and output are arrays without
// separators, in the order in which they are read and written here; src/train/backend/cuda/tests writes and reads
// them. ORDER is the order of the threads (see emulator.hpp).

#include "attention_backward.cu"
#include "rms_norm_backward.cu"

namespace {

// `count` elements of standard input, in memory that ends where they end.
template <typename Element> std::unique_ptr<Element[]> read(size_t count) {
    auto elements = std::make_unique<Element[]>(count);
    if (std::fread(elements.get(), sizeof(Element), count, stdin) != count) {
        std::fputs("kernels: the input is too short\n", stderr);
        std::exit(2);
    }
    return elements;
}

int read_int() { return *read<int>(1).get(); }

float read_float() { return *read<float>(1).get(); }

// Memory for a result, NaN until it is written.
std::unique_ptr<float[]> result(size_t count) {
    auto floats = std::make_unique<float[]>(count);
    std::memset(floats.get(), emulator::NAN_BYTE, count * sizeof(float));
    return floats;
}

void write(const std::unique_ptr<float[]> &floats, size_t count) {
    std::fwrite(floats.get(), sizeof(float), count, stdout);
}

float4 *vectors(const std::unique_ptr<float[]> &floats) { return reinterpret_cast<float4 *>(floats.get()); }

unsigned blocks_for(size_t items, size_t items_per_block) {
    return unsigned((items + items_per_block - 1) / items_per_block);
}

void run_rms_norm_backward(uint64_t order) {
    const int rows = read_int(), width = read_int(), rows_per_block = read_int(), threads = read_int();
    const bool has_residual = read_int() != 0;
    const float epsilon = read_float();
    const size_t size = size_t(rows) * size_t(width);
    const auto x = read<float>(size), weight = read<float>(size_t(width)), gradient = read<float>(size);
    const auto residual = read<float>(has_residual ? size : 0), into = read<float>(size_t(width));
    const unsigned blocks = blocks_for(size_t(rows), size_t(rows_per_block));
    const auto x_gradient = result(size), sums = result(blocks * size_t(width));
    emulator::launch({blocks, 1, 1}, unsigned(threads), size_t(threads) / 32 * 2 * sizeof(float2), order, [&] {
        rms_norm_backward(vectors(x), vectors(weight), vectors(gradient), has_residual ? vectors(residual) : nullptr,
                          vectors(x_gradient), vectors(sums), rows, width, rows_per_block, epsilon);
    });
    emulator::launch({blocks_for(size_t(width), 256), 1, 1}, 256, 0, order,
                     [&] { add_sums_of_blocks(sums.get(), into.get(), int(blocks), width); });
    write(x_gradient, size);
    write(into, size_t(width));
}

template <int WIDTH> void run_attention_backward(uint64_t order, const AttentionShape &shape) {
    const size_t key_tiles = size_t(read_int()), key_visits = size_t(read_int());
    const size_t query_tiles = size_t(read_int()), query_visits = size_t(read_int());
    const auto tiles_of_keys = read<Tile>(key_tiles);
    const auto visits_of_keys = read<Visit>(key_visits);
    const auto tiles_of_queries = read<Tile>(query_tiles);
    const auto visits_of_queries = read<Visit>(query_visits);
    const size_t rows = size_t(shape.tokens) * size_t(shape.heads);
    const size_t size = rows * size_t(shape.head_dim);
    const size_t kv_size = size_t(shape.tokens) * size_t(shape.kv_heads) * size_t(shape.head_dim);
    const auto queries = read<uint4>(size / 8), keys = read<uint4>(kv_size / 8), values = read<uint4>(kv_size / 8);
    const auto output = read<uint4>(size / 8), gradient = read<uint4>(size / 8);
    const auto log_sums = read<float>(rows);
    const auto means = result(rows), query_gradient = result(size);
    const auto key_gradient = result(kv_size), value_gradient = result(kv_size);
    const size_t shared_bytes = 2 * stage_bytes(WIDTH);
    emulator::launch({blocks_for(rows, THREADS / 8), 1, 1}, THREADS, 0, order,
                     [&] { attention_backward_means(shape, output.get(), gradient.get(), means.get()); });
    emulator::launch({unsigned(key_tiles), unsigned(shape.kv_heads), 1}, THREADS, shared_bytes, order, [&] {
        attention_backward_keys<WIDTH>(shape, tiles_of_keys.get(), visits_of_keys.get(), queries.get(), keys.get(),
                                       values.get(), gradient.get(), log_sums.get(), means.get(), key_gradient.get(),
                                       value_gradient.get());
    });
    emulator::launch({unsigned(query_tiles), unsigned(shape.heads), 1}, THREADS, shared_bytes, order, [&] {
        attention_backward_queries<WIDTH>(shape, tiles_of_queries.get(), visits_of_queries.get(), queries.get(),
                                          keys.get(), values.get(), gradient.get(), log_sums.get(), means.get(),
                                          query_gradient.get());
    });
    write(query_gradient, size);
    write(key_gradient, kv_size);
    write(value_gradient, kv_size);
}

} // namespace

int main(int count, char **arguments) {
    const std::string name = count == 3 ? arguments[1] : "";
    const uint64_t order = count == 3 ? std::strtoull(arguments[2], nullptr, 10) : 0;
    if (name == "rms_norm_backward") {
        run_rms_norm_backward(order);
    } else if (name == "attention_backward") {
        const int width = read_int();
        const AttentionShape shape = *read<AttentionShape>(1).get();
        if (width == 64) run_attention_backward<64>(order, shape);
        if (width == 128) run_attention_backward<128>(order, shape);
    } else {
        std::fputs("usage: kernels rms_norm_backward|attention_backward ORDER < INPUT > OUTPUT\n", stderr);
        return 2;
    }
    return 0;
}
