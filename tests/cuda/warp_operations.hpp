// What the lanes of a warp do together, and the instructions that `device.cuh` wraps, for the emulator. Layouts
// of fragments are those of the PTX instruction set (sections "Matrix Fragments for mma.m16n8k16" and "ldmatrix").
#pragma once

#include "emulator.hpp"

namespace emulator {

struct Shuffle {
    float value, result;
    unsigned lane_mask;
};

inline void shuffle_xor(Thread *lanes) {
    for (unsigned lane = 0; lane < LANES; lane++) {
        Shuffle &own = operands<Shuffle>(lanes, lane);
        own.result = operands<Shuffle>(lanes, lane ^ own.lane_mask).value;
    }
}

struct Matrices {
    unsigned *registers;
    unsigned row;
    bool is_transposed;
};

// Lane l gives the offset of row l % 8 of matrix l / 8, and gets two elements of each matrix: those in row
// l / 4 from column 2 (l % 4) on, or the same of the transposed matrix.
inline void load_four_matrices(Thread *lanes) {
    uint16_t matrices[4][8][8];
    for (unsigned lane = 0; lane < LANES; lane++) {
        std::memcpy(matrices[lane / 8][lane % 8], shared_bytes(operands<Matrices>(lanes, lane).row, 16), 16);
    }
    for (unsigned lane = 0; lane < LANES; lane++) {
        const Matrices &own = operands<Matrices>(lanes, lane);
        for (unsigned matrix = 0; matrix < 4; matrix++) {
            unsigned row = lane / 4, column = 2 * (lane % 4);
            auto &of = matrices[matrix];
            unsigned low = own.is_transposed ? of[column][row] : of[row][column];
            unsigned high = own.is_transposed ? of[column + 1][row] : of[row][column + 1];
            own.registers[matrix] = low | high << 16;
        }
    }
}

struct Product {
    float *sums;
    const unsigned *left;
    unsigned right[2];
};

inline void multiply_fragments(Thread *lanes) {
    float left[16][16], right[16][8], sums[16][8];
    for (unsigned lane = 0; lane < LANES; lane++) {
        const Product &own = operands<Product>(lanes, lane);
        unsigned group = lane / 4, pair = 2 * (lane % 4);
        for (unsigned half = 0; half < 2; half++) {
            for (unsigned number = 0; number < 4; number++) {
                unsigned row = group + 8 * (number % 2), k = pair + 8 * (number / 2) + half;
                left[row][k] = from_bf16(own.left[number] >> 16 * half);
            }
            for (unsigned number = 0; number < 2; number++) {
                right[pair + 8 * number + half][group] = from_bf16(own.right[number] >> 16 * half);
            }
            for (unsigned number = 0; number < 2; number++) {
                sums[group + 8 * number][pair + half] = own.sums[2 * number + half];
            }
        }
    }
    for (unsigned k = 0; k < 16; k++) {
        for (unsigned row = 0; row < 16; row++) {
            for (unsigned column = 0; column < 8; column++) sums[row][column] += left[row][k] * right[k][column];
        }
    }
    for (unsigned lane = 0; lane < LANES; lane++) {
        const Product &own = operands<Product>(lanes, lane);
        for (unsigned number = 0; number < 4; number++) {
            own.sums[number] = sums[lane / 4 + 8 * (number / 2)][2 * (lane % 4) + number % 2];
        }
    }
}

// The destination is NaN until the copy's group is waited for.
inline void copy_async(unsigned offset, const void *global, size_t bytes, bool is_wanted) {
    unsigned char *shared = shared_bytes(offset, bytes);
    if (reinterpret_cast<uintptr_t>(global) % bytes != 0) fail("an address in global memory is not aligned");
    std::memset(shared, NAN_BYTE, bytes);
    current->copies.push_back({shared, global, bytes, is_wanted ? bytes : 0});
}

inline void wait_for_groups(size_t left) {
    auto &groups = current->groups;
    for (; groups.size() > left; groups.pop_front()) {
        for (const Copy &copy : groups.front()) {
            std::memset(copy.to, 0, copy.bytes);
            std::memcpy(copy.to, copy.from, copy.read);
        }
    }
}

} // namespace emulator

inline float __shfl_xor_sync(unsigned lanes, float value, int lane_mask,
                             const emulator::Location &where = emulator::Location::current()) {
    if (lanes != 0xffffffffu || lane_mask < 0 || lane_mask > 31) emulator::fail("a shuffle is not of a whole warp");
    emulator::Shuffle shuffle = {value, 0.0f, unsigned(lane_mask)};
    emulator::together(emulator::shuffle_xor, &shuffle, where);
    return shuffle.result;
}

inline unsigned char *shared_memory() { return emulator::block.shared.get(); }

inline float exp2_approximate(float x) { return std::exp2(x); }

inline unsigned pack_bf16(float low, float high) { return emulator::to_bf16(low) | emulator::to_bf16(high) << 16; }

inline float unpack_low(unsigned pair) { return emulator::from_bf16(pair); }

inline float unpack_high(unsigned pair) { return emulator::from_bf16(pair >> 16); }

inline void multiply_accumulate(float (&sums)[4], const unsigned (&left)[4], unsigned right_low, unsigned right_high,
                                const emulator::Location &where = emulator::Location::current()) {
    emulator::Product product = {sums, left, {right_low, right_high}};
    emulator::together(emulator::multiply_fragments, &product, where);
}

inline void load_matrices(unsigned (&registers)[4], unsigned row,
                          const emulator::Location &where = emulator::Location::current()) {
    emulator::Matrices matrices = {registers, row, false};
    emulator::together(emulator::load_four_matrices, &matrices, where);
}

inline void load_matrices_transposed(unsigned (&registers)[4], unsigned row,
                                     const emulator::Location &where = emulator::Location::current()) {
    emulator::Matrices matrices = {registers, row, true};
    emulator::together(emulator::load_four_matrices, &matrices, where);
}

inline void copy_16_async(unsigned shared, const void *global, bool is_wanted) {
    emulator::copy_async(shared, global, 16, is_wanted);
}

inline void copy_4_async(unsigned shared, const void *global, bool is_wanted) {
    emulator::copy_async(shared, global, 4, is_wanted);
}

inline void commit_copies() {
    emulator::current->groups.push_back(std::move(emulator::current->copies));
    emulator::current->copies.clear();
}

template <int LEFT> void wait_copies() { emulator::wait_for_groups(LEFT); }
