// Executes CUDA kernels on the host, a block at a time, for tests on machines without a GPU.
//
// A kernel's source is included as it is and compiled by g++. Each CUDA thread is a fiber with a stack of its
// own. A fiber runs until it meets a barrier or a warp operation, then the next one runs: execution is
// deterministic, and the order of the threads is a parameter. What the tests get out of that:
//
// - A barrier that only some threads reach, or a warp operation that only some lanes reach, ends the program
//   with the places where the threads wait.
// - Shared memory is filled with NaN when a block begins, and is exactly as large as was asked for: the address
//   sanitizer finds accesses beyond it, and beyond each buffer in global memory.
// - An asynchronous copy takes place when its group is waited for, and its destination is NaN until then.
// - A race shows as different bytes under different orders of the threads.
// - Fragments of matrices have the layouts of the PTX instruction set, lane by lane.
#pragma once

#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
using std::max;
using std::min;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

using Location = std::source_location;

constexpr unsigned LANES = 32;
constexpr size_t STACK_BYTES = 256 * 1024;
constexpr int NAN_BYTE = 0xff;

struct Copy {
    void *to;
    const void *from;
    size_t bytes, read;
};

// Where a fiber goes on. The compiler's own jumps: those of the C library ask the kernel each time when the address
// sanitizer is there. A jump and its target are in different functions.
using JumpBuffer = void *[5];
__attribute__((noinline, noreturn, no_sanitize("address"))) inline void jump(JumpBuffer &to) {
    __builtin_longjmp(to, 1);
}

struct Thread;
// What the lanes of a warp do together, once all of them are there.
using WarpOperation = void (*)(Thread *lanes);

enum class State { Ready, AtBarrier, AtWarpOperation, Ended };

struct Thread {
    dim3 index;
    State state = State::Ended;
    Location where;
    WarpOperation operation = nullptr;
    void *operands = nullptr;
    std::vector<Copy> copies;
    std::deque<std::vector<Copy>> groups;
    unsigned char *stack = nullptr;
    JumpBuffer context;
    ucontext_t start;
    void *fake_stack = nullptr;
};

struct Block {
    dim3 index, dimensions, grid;
    std::vector<Thread> threads;
    std::unique_ptr<unsigned char[]> shared;
    size_t shared_bytes = 0;
    std::function<void()> kernel;
    // 0: each warp runs as far as it can, first warp and lane first. 1: the last first. Others: the seed of a
    // random order, in which warps alternate at each warp operation.
    uint64_t order = 0;
    uint64_t random = 0;
};

inline Block block;
inline Thread *current = nullptr;
inline JumpBuffer scheduler;
inline void *scheduler_fake_stack = nullptr;
inline const void *scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;

inline const char *file_name(const Location &where) {
    const char *slash = std::strrchr(where.file_name(), '/');
    return slash ? slash + 1 : where.file_name();
}

[[noreturn]] inline void fail(const char *what) {
    std::fprintf(stderr, "emulator: block (%u, %u): %s\n", block.index.x, block.index.y, what);
    const char *const waits[] = {"could run", "waits at a barrier", "waits at a warp operation", "has ended"};
    Thread *last = nullptr;
    for (Thread &thread : block.threads) {
        bool is_same = last && last->state == thread.state && last->where.line() == thread.where.line();
        if (!is_same) {
            std::fprintf(stderr, "  thread %u %s, %s:%u\n", thread.index.x, waits[int(thread.state)],
                         file_name(thread.where), thread.where.line());
        }
        last = &thread;
    }
    std::_Exit(3);
}

__attribute__((noinline, no_sanitize("address"))) inline void enter(Thread &thread) {
    current = &thread;
    if (__builtin_setjmp(scheduler) == 0) {
        __sanitizer_start_switch_fiber(&scheduler_fake_stack, thread.stack, STACK_BYTES);
        jump(thread.context);
    }
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
    current = nullptr;
}

__attribute__((noinline, no_sanitize("address"))) inline void leave(bool for_ever) {
    Thread &thread = *current;
    if (for_ever || __builtin_setjmp(thread.context) == 0) {
        void **kept = for_ever ? nullptr : &thread.fake_stack;
        __sanitizer_start_switch_fiber(kept, scheduler_stack, scheduler_stack_bytes);
        jump(scheduler);
    }
    __sanitizer_finish_switch_fiber(thread.fake_stack, nullptr, nullptr);
}

inline void wait(State state, const Location &where) {
    current->state = state;
    current->where = where;
    leave(false);
}

// A fiber begins here on its own stack; it goes back to `prepare` once, so that every later switch is a jump.
inline ucontext_t preparing;
__attribute__((noinline, no_sanitize("address"))) inline void begin() {
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    if (__builtin_setjmp(current->context) == 0) {
        __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_bytes);
        setcontext(&preparing);
    }
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    block.kernel();
    current->state = State::Ended;
    leave(true);
}

inline void prepare(Thread &thread) {
    if (!thread.stack) {
        void *memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for a thread's stack");
        thread.stack = static_cast<unsigned char *>(memory);
    }
    ASAN_UNPOISON_MEMORY_REGION(thread.stack, STACK_BYTES);
    thread.state = State::Ready;
    thread.copies.clear();
    thread.groups.clear();
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack;
    thread.start.uc_stack.ss_size = STACK_BYTES;
    makecontext(&thread.start, begin, 0);
    current = &thread;
    void *fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, thread.stack, STACK_BYTES);
    swapcontext(&preparing, &thread.start);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
    current = nullptr;
}

inline uint64_t random_below(uint64_t count) {
    block.random = block.random * 6364136223846793005u + 1442695040888963407u;
    return (block.random >> 33) % count;
}

// Number `step` of `count` in the block's order.
inline unsigned in_order(unsigned step, unsigned count, uint64_t turn) {
    if (block.order == 0) return step;
    if (block.order == 1) return count - 1 - step;
    return unsigned((step + turn) % count);
}

// Runs the lanes of a warp up to where they wait. Whether they can go on from there.
inline bool run_warp(unsigned warp) {
    Thread *lanes = &block.threads[warp * LANES];
    uint64_t turn = random_below(LANES);
    for (unsigned step = 0; step < LANES; step++) {
        Thread &thread = lanes[in_order(step, LANES, turn)];
        if (thread.state == State::Ready) enter(thread);
    }
    for (unsigned lane = 0; lane < LANES; lane++) {
        const Thread &thread = lanes[lane];
        bool is_same = thread.operation == lanes[0].operation && thread.where.line() == lanes[0].where.line();
        if (thread.state != State::AtWarpOperation || !is_same) return false;
    }
    lanes[0].operation(lanes);
    for (unsigned lane = 0; lane < LANES; lane++) lanes[lane].state = State::Ready;
    return true;
}

inline void run_block() {
    unsigned warps = unsigned(block.threads.size()) / LANES;
    for (Thread &thread : block.threads) prepare(thread);
    for (;;) {
        bool goes_on = true;
        while (goes_on) {
            goes_on = false;
            uint64_t turn = random_below(warps);
            for (unsigned step = 0; step < warps; step++) {
                unsigned warp = in_order(step, warps, turn);
                if (block.order > 1) {
                    goes_on |= run_warp(warp);
                } else {
                    while (run_warp(warp)) {}
                }
            }
        }
        const Thread &first = block.threads[0];
        if (first.state == State::AtWarpOperation) fail("not all lanes come to a warp operation");
        for (const Thread &thread : block.threads) {
            if (thread.state == State::AtWarpOperation) fail("not all lanes come to a warp operation");
            bool is_same = first.state == State::Ended || thread.where.line() == first.where.line();
            if (thread.state != first.state || !is_same) fail("not all threads come to a barrier");
        }
        if (first.state == State::Ended) return;
        for (Thread &thread : block.threads) thread.state = State::Ready;
    }
}

// Runs `kernel`, a call with all its arguments, for each thread of each block.
inline void launch(dim3 grid, unsigned threads, size_t shared_bytes, uint64_t order,
                   const std::function<void()> &kernel) {
    if (threads % LANES != 0) fail("a block is whole warps here");
    pthread_attr_t attributes;
    void *stack = nullptr;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &scheduler_stack_bytes);
    pthread_attr_destroy(&attributes);
    scheduler_stack = stack;
    block.dimensions = {threads, 1, 1};
    block.grid = grid;
    block.order = order;
    block.random = order;
    block.kernel = kernel;
    block.shared_bytes = shared_bytes;
    if (block.threads.size() != threads) {
        for (Thread &thread : block.threads) {
            if (thread.stack) munmap(thread.stack, STACK_BYTES);
        }
        block.threads = std::vector<Thread>(threads);
    }
    for (unsigned thread = 0; thread < threads; thread++) block.threads[thread].index = {thread, 0, 0};
    unsigned blocks = grid.x * grid.y;
    for (unsigned step = 0; step < blocks; step++) {
        unsigned number = in_order(step, blocks, order);
        block.index = {number % grid.x, number / grid.x, 0};
        block.shared = std::make_unique<unsigned char[]>(shared_bytes);
        std::memset(block.shared.get(), NAN_BYTE, shared_bytes);
        run_block();
    }
}

inline void together(WarpOperation operation, void *operands, const Location &where) {
    current->operation = operation;
    current->operands = operands;
    wait(State::AtWarpOperation, where);
}

template <typename Operands> Operands &operands(Thread *lanes, unsigned lane) {
    return *static_cast<Operands *>(lanes[lane].operands);
}

// So many bytes of the block's shared memory, aligned to their number.
inline unsigned char *shared_bytes(unsigned offset, size_t bytes) {
    if (offset + bytes > block.shared_bytes) fail("an offset beyond shared memory");
    if (offset % bytes != 0) fail("an offset in shared memory is not aligned");
    return block.shared.get() + offset;
}

inline float from_bf16(unsigned bits) { return std::bit_cast<float>((bits & 0xffffu) << 16); }

// Rounds to nearest, ties to even.
inline unsigned to_bf16(float value) {
    unsigned bits = std::bit_cast<unsigned>(value);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

} // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.dimensions)
#define gridDim (emulator::block.grid)

inline void __syncthreads(const emulator::Location &where = emulator::Location::current()) {
    emulator::wait(emulator::State::AtBarrier, where);
}

#include "warp_operations.hpp"
