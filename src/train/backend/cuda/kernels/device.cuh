// Instructions of the device under names of their own, for all kernels. NVRTC compiles this part; on the host the
// tests' emulator has functions of the same names (tests/cuda/warp_operations.hpp). Nothing here needs a header of
// the CUDA toolkit.
//
// bf16 values are pairs in 32 bits, the first in the low half. Fragments of matrices have the layouts that the PTX
// instruction set gives for mma.m16n8k16: with group = lane / 4 and pair = 2 (lane % 4),
//   left  [16 x 16], four pairs: rows group, group + 8, group, group + 8; columns pair, pair, pair + 8, pair + 8;
//   right [16 x 8], two pairs: column group; rows pair and pair + 8;
//   sums  [16 x 8], four floats: rows group, group, group + 8, group + 8; columns pair, pair + 1, pair, pair + 1.
#pragma once

#ifndef __CUDACC__

#include "emulator.hpp"

#else

// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char *shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

// 2^x with a relative error of 2^-22; 0 for -infinity.
__device__ __forceinline__ float exp2_approximate(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ float unpack_low(unsigned pair) { return __uint_as_float(pair << 16); }

__device__ __forceinline__ float unpack_high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// sums += left · right, by the whole warp.
__device__ __forceinline__ void multiply_accumulate(float (&sums)[4], const unsigned (&left)[4], unsigned right_low,
                                                    unsigned right_high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_low), "r"(right_high));
}

__device__ __forceinline__ unsigned shared_address(unsigned offset) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared_memory())) + offset;
}

// Four matrices of 8 x 8 bf16 from shared memory, by the whole warp: lane l gives the offset of row l % 8 of
// matrix l / 8, in bytes. Register m gets the pair in row lane / 4 of matrix m, from column 2 (lane % 4) on.
__device__ __forceinline__ void load_matrices(unsigned (&registers)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&registers)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begins to copy 16 bytes from global to shared memory, at an offset in bytes; zeros, and nothing is read, where they
// are not wanted.
__device__ __forceinline__ void copy_16_async(unsigned shared, const void *global, bool is_wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(is_wanted ? 16 : 0)
                 : "memory");
}

// The same with 4 bytes.
__device__ __forceinline__ void copy_4_async(unsigned shared, const void *global, bool is_wanted) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(is_wanted ? 4 : 0)
                 : "memory");
}

// The thread's copies so far become a group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most LEFT of the thread's newest groups are still being copied.
template <int LEFT> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#endif
