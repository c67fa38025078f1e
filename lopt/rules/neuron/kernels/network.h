// Layers between neurons, tensors and the whole network, as in network.py.
//
// Legend: N neurons, K tables, T tensors, R roles, c width.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "elementary.h"
#include "mind.h"
#include "tokens.h"

namespace lopt {
namespace mind {

constexpr float kLeastShare = -3.4657359f, kEnough = 5.0f;  // log(1/32); see network.py
constexpr int kAtOnce = 4;  // neurons that are worked on side by side

// Adds W x to y for N neurons that follow one another, with W transposed [in, c]. C is c where it is known when this is
// compiled, so that y stays in registers; else 0.
template <int C, int N>
inline void add_products(const float* w, const float* x, int64_t in, int64_t stride, int64_t c, float* y) {
    if constexpr (C == 0) {
        for (int n = 0; n < N; ++n)
            for (int64_t i = 0; i < in; ++i)
                for (int64_t j = 0; j < c; ++j) y[n * c + j] += x[n * stride + i] * w[i * c + j];
    } else {
        float sums[N][C];
        std::copy_n(y, N * C, sums[0]);
        for (int64_t i = 0; i < in; ++i, w += C)
            for (int n = 0; n < N; ++n) {
                const float known = x[n * stride + i];
#pragma omp simd
                for (int j = 0; j < C; ++j) sums[n][j] += known * w[j];
            }
        std::copy_n(sums[0], N * C, y);
    }
}

class Network {
  public:
    Network(const Space& s, const Theta& theta, const Clock& clock, const Tokens& tokens, int64_t threads)
        : coefficient(s.tensors * kCoefficients), law(s.tensors), correction(s.neurons * kRoles), s(s), theta(theta),
          clock(clock), tokens(tokens), threads(threads), c(theta.width) {
        c == 16 ? think<16>() : think<0>();
    }

    std::vector<float> coefficient;  // [T, kCoefficients]
    std::vector<float> law;          // [T]
    std::vector<float> correction;   // [N, R]: logarithms of factors
    float share = 0;                 // logarithm of the share of every scale that the data set leaves

  private:
    template <int C>
    void think() {
        const int64_t n = s.tensors, k = s.tables;
        std::vector<float> x(s.neurons * c), next(s.neurons * c), t(n * c), g(c), tables(k * c), shared(k * c), in((3 + kRoles) * c),
            time(kGlobalFeatures);
        read_neurons<C>(x.data());
        for (int64_t i = 0; i < n; ++i) {
            float* own = t.data() + i * c;
            theta.read_tensors(tokens.tensor.data() + i * kTensorFeatures, kTensorFeatures, c, own);
            for (int64_t j = 0; j < c; ++j) own[j] = relu(own[j]);
        }
        tokens.global_features(time.data());
        theta.read_time(time.data(), kGlobalFeatures, c, g.data());
        for (float& value : g) value = relu(value);
        for (int64_t r = 0; r < theta.rounds; ++r) {
            const Round& layer = theta.layers()[r];
            table_means(x.data(), tables.data());
            std::copy(g.begin(), g.end(), in.begin());
            mean_of(t.data(), n, n, in.data() + c);
            mean_of(tables.data(), k, std::max<int64_t>(1, k), in.data() + 2 * c);
            layer.network(in.data(), 3 * c, c, g.data());
            for (float& value : g) value = relu(value);
            for (int64_t i = 0; i < n; ++i) {
                beside(t.data() + i * c, s.tables_to_tensors, i, tables.data(), g.data(), in.data());
                layer.tensors(in.data(), (2 + kRoles) * c, c, t.data() + i * c);
                for (int64_t j = 0; j < c; ++j) t[i * c + j] = relu(t[i * c + j]);
            }
            for (int64_t i = 0; i < k; ++i) {
                beside(tables.data() + i * c, s.tensors_to_tables, i, t.data(), g.data(), in.data());
                layer.tables(in.data(), (2 + kRoles) * c, c, shared.data() + i * c);
            }
            next_neurons<C>(layer, shared.data(), x.data(), next.data());
            x.swap(next);
        }
        for (int64_t i = 0; i < n; ++i) {
            const float* features = tokens.tensor.data() + i * kTensorFeatures;
            const float* place = features + kFeatures;
            theta.tensor_head(t.data() + i * c, c, kCoefficients, coefficient.data() + i * kCoefficients);
            float of_hidden;
            theta.scale_law(features, kTensorFeatures, 1, &law[i]);
            theta.hidden_law(place, kStatic, 1, &of_hidden);
            law[i] += place[kHidden] * of_hidden;
        }
        corrections(x.data());
        if (clock.knows_data()) {
            tokens.data_features(time.data());
            theta.data_law(time.data(), kDataFeatures, 1, &share);
            share = std::max(share, std::max(tokens.log_examples_per_weight() - std::log(kEnough), kLeastShare));
            share = std::min(share, 0.0f);
        }
    }

    // Features of the entries of a neuron, role by role, and which roles there are. [N, c]
    template <int C>
    void read_neurons(float* x) {
        constexpr int64_t roles = kRoles * kFeatures;
        const std::vector<float> w = theta.read_neurons.transposed(roles + kRoles, c);
        in_blocks(s.neurons, threads, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) {
                float *own = x + i * c, met[kFeatures];
                std::copy_n(theta.read_neurons.bias, c, own);
                for (int r = 0; r < kRoles; ++r) {
                    if (s.to_neurons.none(i * kRoles + r)) continue;  // what is not there is zero
                    const float *role = w.data() + r * kFeatures * c, *presence = w.data() + (roles + r) * c;
                    s.to_neurons.one(i * kRoles + r, tokens.feature.get(), kFeatures, met);
                    add_products<C, 1>(role, met, kFeatures, 0, c, own);
                    for (int64_t j = 0; j < c; ++j) own[j] += presence[j];
                }
                for (int64_t j = 0; j < c; ++j) own[j] = relu(own[j]);
            }
        });
    }

    template <int C>
    void next_neurons(const Round& layer, const float* shared, const float* x, float* next) {
        const std::vector<float> w = layer.neurons.transposed(c, c);
        in_blocks(s.neurons, threads, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) std::copy_n(shared + s.table[i] * c, c, next + i * c);
            int64_t i = first;
            for (; i + kAtOnce <= last; i += kAtOnce)
                add_products<C, kAtOnce>(w.data(), x + i * c, c, c, c, next + i * c);
            for (; i < last; ++i) add_products<C, 1>(w.data(), x + i * c, c, c, c, next + i * c);
            for (int64_t j = first * c; j < last * c; ++j) next[j] = relu(next[j]);
        });
    }

    void table_means(const float* x, float* tables) const {
        std::vector<double> total(s.tables * c);
        for (int64_t i = 0; i < s.neurons; ++i)
            for (int64_t j = 0; j < c; ++j) total[s.table[i] * c + j] += x[i * c + j];
        for (int64_t k = 0; k < s.tables; ++k)
            for (int64_t j = 0; j < c; ++j)
                tables[k * c + j] = static_cast<float>(total[k * c + j]) * s.table_weight[k];
    }

    void mean_of(const float* x, int64_t rows, int64_t count, float* out) const {
        for (int64_t j = 0; j < c; ++j) {
            double total = 0;
            for (int64_t i = 0; i < rows; ++i) total += x[i * c + j];
            out[j] = total / count;
        }
    }

    // Its own numbers, those that it meets, role by role, and the network's: [(2 + R) c].
    void beside(const float* own, const Sums& meets, int64_t index, const float* others, const float* g,
                float* in) const {
        std::copy_n(own, c, in);
        for (int r = 0; r < kRoles; ++r) meets.one(index * kRoles + r, others, c, in + (1 + r) * c);
        std::copy_n(g, c, in + (1 + kRoles) * c);
    }

    // The logarithms of the factors of each neuron, by role: [N, R].
    void corrections(const float* x) {
        in_blocks(s.neurons, threads, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i)
                for (int r = 0; r < kRoles; ++r) {
                    if (s.to_neurons.none(i * kRoles + r)) continue;
                    const Linear head{theta.neuron_head.weight + r * c, theta.neuron_head.bias + r};
                    head(x + i * c, c, 1, &correction[i * kRoles + r]);
                }
            float* found = correction.data();
#pragma omp simd
            for (int64_t k = first * kRoles; k < last * kRoles; ++k) found[k] = tangent(found[k]);
        });
    }

    const Space& s;
    const Theta& theta;
    const Clock& clock;
    const Tokens& tokens;
    const int64_t threads, c;
};

}  // namespace mind
}  // namespace lopt
