// What the functional of the Neuron rule reads: the network that is trained, its own meta-parameters, the time.
//
// Legend: E entries without those of the tensors, A = E + T, N neurons, K tables, T tensors, R roles.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace lopt {
namespace mind {

// As in tokens.py, layout.py, network.py, combine.py and moments.py.
constexpr int kMoments = 8, kFeatures = 8, kStatic = 16, kHidden = 15, kLosses = 3, kRoles = 4, kScales = 11;
constexpr int kTensorFeatures = kFeatures + kStatic + kLosses, kGlobalFeatures = kScales + 5, kDataFeatures = 1;
constexpr int kCoefficients = 10;
enum { GG, MM, WW, V, GM, MS, SW, M };

constexpr int64_t kBlock = 1 << 8;  // entries or neurons that a thread takes at a time

// As in layout.py, by result: the r-th is weight[r] times the sum of the rows source[k], first[r] <= k < first[r + 1].
struct Sums {
    const int64_t *first, *source;
    const float* weight;

    bool none(int64_t r) const { return first[r] == first[r + 1]; }

    // x [rows, c] -> result r, [c]
    void one(int64_t r, const float* x, int64_t c, float* out) const {
        std::fill(out, out + c, 0.0f);
        for (int64_t k = first[r]; k < first[r + 1]; ++k)
            for (int64_t j = 0; j < c; ++j) out[j] += x[source[k] * c + j];
        for (int64_t j = 0; j < c; ++j) out[j] *= weight[r];
    }
};

struct Space {  // of `Layout` what a step needs
    int64_t tensors, entries, rows, neurons, tables;
    const int64_t* tensor;        // [A]
    const float* inverse_size;    // [A]
    const float* place;           // [T, kStatic]
    const int64_t* table;         // [N], rising
    const float* table_weight;    // [K]: one over the neurons of a table
    const float* timescales;      // [kScales]
    const float* loss_gains;      // [3]
    Sums to_neurons, to_entries, tables_to_tensors, tensors_to_tables;
};

struct Linear {
    const float *weight, *bias;  // [out, in], [out] or null

    // y = W x + b
    void operator()(const float* x, int64_t in, int64_t out, float* y) const {
        for (int64_t o = 0; o < out; ++o) {
            float total = 0;
            const float* w = weight + o * in;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < in; ++i) total += w[i] * x[i];
            y[o] = total + (bias ? bias[o] : 0.0f);
        }
    }

    // [out, in] -> [in, out]: so that the outputs of a neuron are worked on side by side
    std::vector<float> transposed(int64_t in, int64_t out) const {
        std::vector<float> found(in * out);
        for (int64_t o = 0; o < out; ++o)
            for (int64_t i = 0; i < in; ++i) found[i * out + o] = weight[o * in + i];
        return found;
    }
};

struct Round {
    Linear network, tensors, neurons, tables;
};

struct Theta {  // `TokenNetwork`
    int64_t width, rounds;
    Linear read_neurons, read_tensors, read_time, tensor_head, neuron_head, scale_law, hidden_law, data_law;

    const Round* layers() const { return reinterpret_cast<const Round*>(this + 1); }
};

struct Clock {
    double log_decays[3], step, horizon, loss, dataset_size, batch_size;
    int64_t has_horizon, has_loss, has_dataset_size, has_batch_size;

    bool knows_data() const { return has_dataset_size && has_batch_size; }
};

// Work of some entries or neurons after the other: work(first, last), which must not throw.
template <class Work>
void in_blocks(int64_t count, int64_t threads, const Work& work) {
    spread((count + kBlock - 1) / kBlock, threads, [&](int64_t i) {
        work(i * kBlock, std::min(count, (i + 1) * kBlock));
    });
}

}  // namespace mind
}  // namespace lopt
