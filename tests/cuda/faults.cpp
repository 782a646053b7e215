// Kernels with one fault each, which the emulator must find: faults NAME ORDER > OUTPUT. Where nothing ends the
// program, OUTPUT is the result.

#include "device.cuh"

namespace {

constexpr int THREADS = 64;

// Each thread reads what its neighbour in the block has written; `has_barrier` says whether it waits.
void neighbours(float *result, bool has_barrier) {
    float *shared = reinterpret_cast<float *>(shared_memory());
    shared[threadIdx.x] = float(threadIdx.x);
    if (has_barrier) __syncthreads();
    result[threadIdx.x] = shared[(threadIdx.x + 32) % THREADS];
}

void barrier_in_a_branch() {
    if (threadIdx.x < 32) __syncthreads();
}

void barriers_at_two_places() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

void shuffle_in_a_branch(float *result) {
    if (threadIdx.x % 32 < 31) result[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

void write_beyond_shared_memory() { reinterpret_cast<float *>(shared_memory())[threadIdx.x + 1] = 0.0f; }

void write_beyond_global_memory(float *result) { result[threadIdx.x + 1] = 0.0f; }

void read_uninitialised_shared_memory(float *result) {
    result[threadIdx.x] = reinterpret_cast<float *>(shared_memory())[threadIdx.x];
}

// Reads the thread's own asynchronous copy; `waits` says whether it waits for it.
void copy(float *result, const float *from, bool waits) {
    float *shared = reinterpret_cast<float *>(shared_memory());
    copy_4_async(threadIdx.x * sizeof(float), from + threadIdx.x, true);
    commit_copies();
    if (waits) wait_copies<0>();
    result[threadIdx.x] = shared[threadIdx.x];
}

void load_a_row_that_is_not_aligned() {
    unsigned registers[4];
    load_matrices(registers, 8);
}

} // namespace

int main(int count, char **arguments) {
    const std::string name = count == 3 ? arguments[1] : "";
    const uint64_t order = count == 3 ? std::strtoull(arguments[2], nullptr, 10) : 0;
    auto result = std::make_unique<float[]>(THREADS);
    auto from = std::make_unique<float[]>(THREADS);
    for (int index = 0; index < THREADS; index++) from[size_t(index)] = float(index + 32) - (index < 32 ? 0 : THREADS);
    const std::pair<const char *, std::function<void()>> kernels[] = {
        {"neighbours_with_a_barrier", [&] { neighbours(result.get(), true); }},
        {"neighbours_without_a_barrier", [&] { neighbours(result.get(), false); }},
        {"barrier_in_a_branch", [&] { barrier_in_a_branch(); }},
        {"barriers_at_two_places", [&] { barriers_at_two_places(); }},
        {"shuffle_in_a_branch", [&] { shuffle_in_a_branch(result.get()); }},
        {"write_beyond_shared_memory", [&] { write_beyond_shared_memory(); }},
        {"write_beyond_global_memory", [&] { write_beyond_global_memory(result.get()); }},
        {"read_uninitialised_shared_memory", [&] { read_uninitialised_shared_memory(result.get()); }},
        {"copy_that_is_waited_for", [&] { copy(result.get(), from.get(), true); }},
        {"copy_that_is_not_waited_for", [&] { copy(result.get(), from.get(), false); }},
        {"load_a_row_that_is_not_aligned", [&] { load_a_row_that_is_not_aligned(); }},
    };
    for (const auto &[known, kernel] : kernels) {
        if (name != known) continue;
        emulator::launch({1, 1, 1}, THREADS, THREADS * sizeof(float), order, kernel);
        std::fwrite(result.get(), sizeof(float), THREADS, stdout);
        return 0;
    }
    std::fputs("usage: faults NAME ORDER > OUTPUT\n", stderr);
    return 2;
}
