// Backward of RMS norm, y = x · w · r with r = 1 / sqrt(mean(x²) + epsilon), over rows of `width` floats:
//   gradient of x = r · (g · w - x · r² · mean(g · w · x)),  gradient of w = sum over rows of g · x · r.
//
// A block has consecutive rows, one after the other, and reads x and g once: a row stays in registers between the
// sums and the result. Each block writes the sum of its rows for the weight; a second kernel adds these sums in the
// order of the blocks. Nothing is added atomically, and which rows a block has does not depend on the device, so
// that results are the same, bit for bit, each time and everywhere.
//
// `width` is a multiple of 4 and at most 4 · VECTORS · blockDim.x, a block has 512 threads at most: 8192 columns.
// Dynamic shared memory: 2 · warps · 8 bytes.

#include "device.cuh"

// Vectors of four floats that a thread holds of a row.
constexpr int VECTORS = 4;

__device__ __forceinline__ float2 sum_of_warp(float2 value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value.x += __shfl_xor_sync(0xffffffffu, value.x, lanes);
        value.y += __shfl_xor_sync(0xffffffffu, value.y, lanes);
    }
    return value;
}

// The sums over all threads of the block, for every thread. `buffer` has a place for each warp. Calls alternate
// between two buffers: who is at the next call's barrier has read this one's buffer.
__device__ __forceinline__ float2 sum_of_block(float2 value, float2 *buffer) {
    value = sum_of_warp(value);
    if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = value;
    __syncthreads();
    float2 sum = make_float2(0.0f, 0.0f);
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) {
        sum.x += buffer[warp].x;
        sum.y += buffer[warp].y;
    }
    return sum;
}

__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

__device__ __forceinline__ float4 operator*(float4 a, float b) {
    return make_float4(a.x * b, a.y * b, a.z * b, a.w * b);
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float sum(float4 a) { return (a.x + a.y) + (a.z + a.w); }

// The gradient of x, plus `residual` where it is given (the gradient that passes by the norm; it may be
// `x_gradient` itself). With `weight_sums`, [blocks, width], also each block's part of the weight's gradient.
// Block b has the rows from b · rows_per_block on.
__global__ void __launch_bounds__(512)
    rms_norm_backward(const float4 *x, const float4 *weight, const float4 *gradient, const float4 *residual,
                      float4 *x_gradient, float4 *weight_sums, int rows, int width, int rows_per_block,
                      float epsilon) {
    float2 *buffers = reinterpret_cast<float2 *>(shared_memory());
    const int vectors = width / 4;
    const int first = blockIdx.x * rows_per_block;
    const int end = min(first + rows_per_block, rows);
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 weights[VECTORS], weight_gradient[VECTORS];
#pragma unroll
    for (int vector = 0; vector < VECTORS; vector++) {
        const int column = threadIdx.x + vector * blockDim.x;
        weights[vector] = column < vectors ? weight[column] : zero;
        weight_gradient[vector] = zero;
    }
    for (int row = first; row < end; row++) {
        const size_t start = static_cast<size_t>(row) * vectors;
        float4 values[VECTORS], gradients[VECTORS];
        float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int vector = 0; vector < VECTORS; vector++) {
            const int column = threadIdx.x + vector * blockDim.x;
            values[vector] = column < vectors ? x[start + column] : zero;
            gradients[vector] = column < vectors ? gradient[start + column] : zero;
            sums.x += sum(values[vector] * values[vector]);
            sums.y += sum(gradients[vector] * weights[vector] * values[vector]);
        }
        const int warps = blockDim.x / 32;
        sums = sum_of_block(sums, buffers + (row - first) % 2 * warps);
        const float inverse = 1.0f / sqrtf(sums.x / width + epsilon);
        const float along = -inverse * inverse * inverse * sums.y / width;
#pragma unroll
        for (int vector = 0; vector < VECTORS; vector++) {
            const int column = threadIdx.x + vector * blockDim.x;
            if (column >= vectors) continue;
            float4 result = gradients[vector] * weights[vector] * inverse + values[vector] * along;
            if (residual) result = result + residual[start + column];
            x_gradient[start + column] = result;
            weight_gradient[vector] = weight_gradient[vector] + gradients[vector] * values[vector] * inverse;
        }
    }
    if (!weight_sums) return;
#pragma unroll
    for (int vector = 0; vector < VECTORS; vector++) {
        const int column = threadIdx.x + vector * blockDim.x;
        if (column < vectors) weight_sums[static_cast<size_t>(blockIdx.x) * vectors + column] = weight_gradient[vector];
    }
}

// into[column] += the sums of all blocks, in the order of the blocks. A thread for each column.
__global__ void __launch_bounds__(256) add_sums_of_blocks(const float *sums, float *into, int blocks, int width) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = into[column];
    for (int block = 0; block < blocks; block++) sum += sums[static_cast<size_t>(block) * width + column];
    into[column] = sum;
}
