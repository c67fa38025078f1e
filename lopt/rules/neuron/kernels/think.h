// What happens between the two passes, on a CPU: tokens.py, network.py and combine.py in one call.
//
// All arithmetic is in float but for sums over many neurons or rows. Neurons and entries go in blocks, which threads
// take one after the other; every sum is taken in an order that the network decides, so the result does not depend on
// the number of threads.
//
// Legend: E entries without those of the tensors, A = E + T, N neurons, K tables, T tensors, R roles, c width.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace lopt {
namespace mind {

// As in tokens.py, layout.py, network.py, combine.py and moments.py.
constexpr int kMoments = 8, kFeatures = 8, kStatic = 16, kHidden = 15, kLosses = 3, kRoles = 4, kScales = 11;
constexpr int kTensorFeatures = kFeatures + kStatic + kLosses, kGlobalFeatures = kScales + 5, kCoefficients = 10;
enum { GG, MM, WW, V, GM, MS, SW, M };
enum { CENTRE_ROWS = 6, CENTRE_COLUMNS, SCALE, ANNEAL };
constexpr float kRmsGuard = 1e-25f, kRelativeGuard = 1e-8f, kWeightGuard = 1e-8f, kLossGuard = 1e-12f;
constexpr float kLogUnit = 4.0f, kDown = 3.0f, kUp = 1.0f, kTen = 2.302585093f, kUnknownRest = 0.5f;

constexpr int64_t kBlock = 1 << 10;  // entries or neurons that a thread takes at a time
constexpr int kAtOnce = 4;           // neurons that are worked on side by side

struct Sums {  // as in layout.py
    int64_t count;
    const int64_t *source, *target;
    const float* weight;

    // [rows, c] -> [results, c]
    void operator()(const float* x, int64_t c, int64_t results, float* out) const {
        std::fill(out, out + results * c, 0.0f);
        for (int64_t k = 0; k < count; ++k)
            for (int64_t j = 0; j < c; ++j) out[target[k] * c + j] += x[source[k] * c + j];
        for (int64_t r = 0; r < results; ++r)
            for (int64_t j = 0; j < c; ++j) out[r * c + j] *= weight[r];
    }
};

struct Space {  // of `Layout` what a step needs
    int64_t tensors, entries, rows, neurons, tables;
    const int64_t* tensor;        // [A]
    const float* inverse_size;    // [A]
    const float* place;           // [T, kStatic]
    const float* present;         // [N, R]
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
    Linear read_neurons, read_tensors, read_time, tensor_head, neuron_head, scale_law, hidden_law;

    const Round* layers() const { return reinterpret_cast<const Round*>(this + 1); }
};

struct Clock {
    double log_decays[3], step, horizon, loss;
    int64_t has_horizon, has_loss;
};

struct Plan {  // what comes out, as in combine.py
    float *rows, *columns, *scales;
};

inline float relu(float x) { return x > 0 || x != x ? x : 0.0f; }  // keeps what is not a number

inline float lerp(float a, float b, float w) { return w < 0.5f ? a + w * (b - a) : b - (b - a) * (1 - w); }

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

class Thought {
  public:
    Thought(const Space& space, const Theta& theta, const Clock& clock, const float* sums, float* const* steps,
            float* const* losses, int64_t threads)
        : s(space), theta(theta), clock(clock), sums(sums), steps(steps), losses(losses), threads(threads),
          c(theta.width), all(s.entries + s.tensors), debias(3 * s.tensors), mean(kMoments * all), root(4 * all),
          feature(kFeatures * all), logs(4 * s.tensors), tensor(s.tensors * kTensorFeatures),
          coefficient(s.tensors * kCoefficients), law(s.tensors), correction(s.entries) {}

    void plan(const Plan& out) {
        moments();
        tensor_features();
        c == 16 ? network<16>() : network<0>();
        combine(out);
    }

  private:
    // --- tokens.py

    void moments() {
        const int64_t n = s.tensors;
        std::vector<float> correct(kMoments * n);
        std::vector<double> totals(kMoments * n);
        for (int64_t t = 0; t < n; ++t) {
            *steps[t] += 1;
            float d[3];
            for (int k = 0; k < 3; ++k) d[k] = std::log(-std::expm1(*steps[t] * clock.log_decays[k])), debias[k * n + t] = d[k];
            const float powers[kMoments] = {0, 2 * d[0], 0, d[2], d[0], d[0] + d[1], d[1], d[0]};
            for (int k = 0; k < kMoments; ++k) correct[k * n + t] = std::exp(-powers[k]);
        }
        for (int k = 0; k < kMoments; ++k)
            for (int64_t e = 0; e < s.rows; ++e) totals[k * n + s.tensor[e]] += sums[k * s.entries + e];
        for (int k = 0; k < kMoments; ++k)
            for (int64_t t = 0; t < n; ++t)
                mean[k * all + s.entries + t] =
                    static_cast<float>(totals[k * n + t]) * correct[k * n + t] * s.inverse_size[s.entries + t];
        features(s.entries, all);
        blocks(s.entries, [&](int64_t first, int64_t last) {
            for (int k = 0; k < kMoments; ++k)
                for (int64_t e = first; e < last; ++e)
                    mean[k * all + e] = sums[k * s.entries + e] * correct[k * n + s.tensor[e]] * s.inverse_size[e];
            features(first, last);
        });
    }

    // The features of some entries from their means; those of the tensors must be there, or be made.
    void features(int64_t first, int64_t last) {
        for (int64_t e = first; e < last; ++e) {
            const int64_t t = s.tensor[e], own = s.entries + t;
            const float weight = mean[WW * all + own] * kRelativeGuard + kRmsGuard;
            const float second = mean[V * all + own] * kRelativeGuard + kRmsGuard;
            const float guarded[4] = {mean[GG * all + e] + second, mean[MM * all + e] + second,
                                      mean[WW * all + e] + weight, mean[V * all + e] + second};
            float r[4], l[4];
            for (int k = 0; k < 4; ++k) r[k] = 1 / std::sqrt(guarded[k]), root[k * all + e] = r[k];
            for (int k = 0; k < 4; ++k) l[k] = std::log(guarded[k]);
            if (e >= s.entries)
                for (int k = 0; k < 4; ++k) logs[k * s.tensors + t] = l[k];
            const float found[kFeatures] = {
                (l[WW] - logs[WW * s.tensors + t]) / kLogUnit,
                (l[V] - logs[V * s.tensors + t]) / kLogUnit,
                (l[GG] - l[V]) / kLogUnit,
                (l[MM] - l[V]) / kLogUnit,
                mean[GM * all + e] * r[GG] * r[MM],
                mean[MS * all + e] * r[MM] * r[V],
                mean[SW * all + e] * r[WW] * r[V],
                mean[M * all + e] * r[MM] * (mean[M * all + e] * r[MM]),
            };
            for (int k = 0; k < kFeatures; ++k) feature[e * kFeatures + k] = found[k];
        }
    }

    void tensor_features() {
        const int64_t n = s.tensors;
        double total = 0;
        for (int64_t t = 0; t < n; ++t) total += mean[V * all + s.entries + t];
        const float network = total / n;
        for (int64_t t = 0; t < n; ++t) {
            float* x = tensor.data() + t * kTensorFeatures;
            const float weight = mean[WW * all + s.entries + t], gradient = mean[V * all + s.entries + t];
            std::copy_n(feature.data() + (s.entries + t) * kFeatures, kFeatures, x);
            x[0] = std::log(weight + kWeightGuard) / (2 * kLogUnit);
            x[1] = (std::log(gradient + kRelativeGuard * network + kRmsGuard) - std::log(network + kRmsGuard)) /
                   (2 * kLogUnit);
            std::copy_n(s.place + t * kStatic, kStatic, x + kFeatures);
            follow_loss(losses[t], x + kFeatures + kStatic);
        }
    }

    // Advances what a tensor remembers of the loss, and writes the features of it.
    void follow_loss(float* known, float* x) const {
        std::fill(x, x + kLosses, 0.0f);
        if (!clock.has_loss) return;
        const float loss = clock.loss, count = known[0], away = loss - known[2];
        const float told[3] = {loss, loss, away * away * std::min(count, 1.0f)};
        for (int k = 0; k < 3; ++k) known[1 + k] = lerp(known[1 + k], told[k], std::max(1 / (count + 1), s.loss_gains[k]));
        known[0] = count + 1;
        const float spread = 1 / std::sqrt(known[3] + kLossGuard * known[2] * known[2] + kRmsGuard);
        x[0] = 1, x[1] = std::tanh((known[1] - known[2]) * spread), x[2] = std::tanh((loss - known[2]) * spread);
    }

    void global_features(float* x) const {
        const float step = clock.step, horizon = clock.horizon;
        for (int k = 0; k < kScales; ++k) x[k] = std::tanh(step / s.timescales[k] - 1);
        x += kScales;
        std::fill(x, x + 5, 0.0f);
        x[0] = std::log1p(step) / 10;
        if (!clock.has_horizon) return;
        const float done = std::min(step / horizon, 1.0f);
        x[1] = 1, x[2] = done, x[3] = 1 - done, x[4] = std::log(horizon) / 10;
    }

    float log_rest() const {
        const float step = clock.step, horizon = clock.horizon;
        if (!clock.has_horizon) return std::log(kUnknownRest);
        return std::log(std::max(horizon - step, 1.0f) / std::max(horizon, 1.0f));
    }

    // --- network.py

    template <int C>
    void network() {
        const int64_t n = s.tensors, k = s.tables, met_width = kRoles * c;
        std::vector<float> x(s.neurons * c), t(n * c), g(c), tables(k * c), met(std::max(n, k) * met_width),
            shared(k * c), in((3 + kRoles) * c + kGlobalFeatures), time(kGlobalFeatures);
        read_neurons<C>(x.data());
        for (int64_t i = 0; i < n; ++i) {
            float* own = t.data() + i * c;
            theta.read_tensors(tensor.data() + i * kTensorFeatures, kTensorFeatures, c, own);
            for (int64_t j = 0; j < c; ++j) own[j] = relu(own[j]);
        }
        global_features(time.data());
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
            s.tables_to_tensors(tables.data(), c, n * kRoles, met.data());
            for (int64_t i = 0; i < n; ++i) {
                beside(t.data() + i * c, met.data() + i * met_width, g.data(), in.data());
                layer.tensors(in.data(), (2 + kRoles) * c, c, t.data() + i * c);
                for (int64_t j = 0; j < c; ++j) t[i * c + j] = relu(t[i * c + j]);
            }
            s.tensors_to_tables(t.data(), c, k * kRoles, met.data());
            for (int64_t i = 0; i < k; ++i) {
                beside(tables.data() + i * c, met.data() + i * met_width, g.data(), in.data());
                layer.tables(in.data(), (2 + kRoles) * c, c, shared.data() + i * c);
            }
            next_neurons<C>(layer, shared.data(), x.data());
        }
        for (int64_t i = 0; i < n; ++i) {
            const float* features = tensor.data() + i * kTensorFeatures;
            const float* place = features + kFeatures;
            theta.tensor_head(t.data() + i * c, c, kCoefficients, coefficient.data() + i * kCoefficients);
            float of_hidden;
            theta.scale_law(features, kTensorFeatures, 1, &law[i]);
            theta.hidden_law(place, kStatic, 1, &of_hidden);
            law[i] += place[kHidden] * of_hidden;
        }
        corrections(x.data());
    }

    // Features of the entries of a neuron, role by role, and which roles there are. [N, c]
    template <int C>
    void read_neurons(float* x) {
        constexpr int64_t roles = kRoles * kFeatures;
        std::vector<float> met(s.neurons * roles);
        s.to_neurons(feature.data(), kFeatures, s.neurons * kRoles, met.data());
        const std::vector<float> w = theta.read_neurons.transposed(roles + kRoles, c);
        blocks(s.neurons, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) {
                float* own = x + i * c;
                std::copy_n(theta.read_neurons.bias, c, own);
                for (int r = 0; r < kRoles; ++r) {
                    if (s.present[i * kRoles + r] == 0) continue;  // what is not there is zero
                    const float *role = w.data() + r * kFeatures * c, *presence = w.data() + (roles + r) * c;
                    add_products<C, 1>(role, met.data() + i * roles + r * kFeatures, kFeatures, 0, c, own);
                    for (int64_t j = 0; j < c; ++j) own[j] += presence[j];
                }
                for (int64_t j = 0; j < c; ++j) own[j] = relu(own[j]);
            }
        });
    }

    template <int C>
    void next_neurons(const Round& layer, const float* shared, float* x) {
        const std::vector<float> w = layer.neurons.transposed(c, c);
        blocks(s.neurons, [&](int64_t first, int64_t last) {
            std::vector<float> next(kAtOnce * c);
            for (int64_t i = first; i < last;) {
                const int64_t some = i + kAtOnce <= last ? kAtOnce : 1;
                for (int64_t k = 0; k < some; ++k) std::copy_n(shared + s.table[i + k] * c, c, next.data() + k * c);
                if (some == kAtOnce)
                    add_products<C, kAtOnce>(w.data(), x + i * c, c, c, c, next.data());
                else
                    add_products<C, 1>(w.data(), x + i * c, c, c, c, next.data());
                for (int64_t j = 0; j < some * c; ++j) x[i * c + j] = relu(next[j]);
                i += some;
            }
        });
    }

    void table_means(const float* x, float* tables) const {
        std::vector<double> total(s.tables * c);
        for (int64_t i = 0; i < s.neurons; ++i)
            for (int64_t j = 0; j < c; ++j) total[s.table[i] * c + j] += x[i * c + j];
        for (int64_t k = 0; k < s.tables; ++k)
            for (int64_t j = 0; j < c; ++j) tables[k * c + j] = static_cast<float>(total[k * c + j]) * s.table_weight[k];
    }

    void mean_of(const float* x, int64_t rows, int64_t count, float* out) const {
        for (int64_t j = 0; j < c; ++j) {
            double total = 0;
            for (int64_t i = 0; i < rows; ++i) total += x[i * c + j];
            out[j] = total / count;
        }
    }

    void beside(const float* own, const float* met, const float* g, float* in) const {
        std::copy_n(own, c, in);
        std::copy_n(met, kRoles * c, in + c);
        std::copy_n(g, c, in + (1 + kRoles) * c);
    }

    // The logarithm of the factor of each row and column: [E].
    void corrections(const float* x) {
        std::vector<float> found(s.neurons * kRoles);
        blocks(s.neurons, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i)
                for (int r = 0; r < kRoles; ++r) {
                    if (s.present[i * kRoles + r] == 0) continue;
                    const Linear head{theta.neuron_head.weight + r * c, theta.neuron_head.bias + r};
                    head(x + i * c, c, 1, &found[i * kRoles + r]);
                    found[i * kRoles + r] = std::tanh(found[i * kRoles + r]);
                }
        });
        s.to_entries(found.data(), 1, s.entries, correction.data());
    }

    // --- combine.py

    void combine(const Plan& out) {
        const int64_t n = s.tensors, columns = s.entries - s.rows;
        std::vector<float> number(kMoments * n), roots(n);
        const float rest = log_rest();
        for (int64_t t = 0; t < n; ++t) {
            const float *h = coefficient.data() + t * kCoefficients, m = logs[MM * n + t], v = logs[V * n + t];
            const float dm = debias[t], ds = debias[n + t], dv = debias[2 * n + t];
            const float size = 0.5f * (m - v), half = 0.5f * v, base = -dm - half;
            const float known = mean[MM * all + s.entries + t] * std::exp(-m);
            const float found[kMoments] = {
                std::exp(size - half) * h[0],
                std::exp(base) * (1 + h[1]),
                std::exp(-ds - half) * h[2],
                std::exp(size - 0.5f * logs[WW * n + t]) * (h[3] * known),
                std::exp(base) * h[4],
                std::exp(-dm) * h[5],
                std::exp(-v - dv),
                h[CENTRE_ROWS],
            };
            for (int k = 0; k < kMoments; ++k) number[k * n + t] = found[k];
            roots[t] = std::exp(half);
            out.scales[t] = std::min(bounded_scale(h[SCALE] + law[t]) * std::exp(h[ANNEAL] * rest), std::pow(10.0f, kUp));
        }
        blocks(s.entries, [&](int64_t first, int64_t last) {
            for (int64_t e = first; e < last; ++e) {
                const int64_t t = s.tensor[e];
                const float factor = std::exp(correction[e]), r = root[V * all + e];
                const float centre = factor * (mean[M * all + e] * r);
                if (e < s.rows) {
                    for (int k = 0; k < 5; ++k) out.rows[k * s.rows + e] = number[k * n + t] * factor;
                    out.rows[5 * s.rows + e] = number[5 * n + t] * (factor * (r * roots[t]));
                    out.rows[6 * s.rows + e] = number[6 * n + t];
                    out.rows[7 * s.rows + e] = number[7 * n + t] * centre;
                } else {
                    const int64_t column = e - s.rows;
                    out.columns[column] = r;
                    out.columns[columns + column] = factor;
                    out.columns[2 * columns + column] = centre * coefficient[t * kCoefficients + CENTRE_COLUMNS];
                }
            }
        });
    }

    static float bounded_scale(float x) {
        const float kappa = (kDown + kUp) / (kDown * kUp * kTen);
        const float sigmoid = 1 / (1 + std::exp(-(kappa * x + std::log(kDown / kUp))));
        return std::exp(kTen * ((kDown + kUp) * sigmoid - kDown));
    }

    template <class Work>
    void blocks(int64_t count, const Work& work) const {
        spread((count + kBlock - 1) / kBlock, threads, [&](int64_t i) {
            work(i * kBlock, std::min(count, (i + 1) * kBlock));
        });
    }

    const Space& s;
    const Theta& theta;
    const Clock& clock;
    const float* sums;  // [kMoments, E]
    float *const *steps, *const *losses;  // of each tensor: (), [4]
    const int64_t threads, c, all;
    std::vector<float> debias;       // [3, T]: logarithms
    std::vector<float> mean;         // [kMoments, A]
    std::vector<float> root;         // [4, A]: one over the roots of g g, m m, w w and v, guarded
    std::vector<float> feature;      // [A, kFeatures]
    std::vector<float> logs;         // [4, T]
    std::vector<float> tensor;       // [T, kTensorFeatures]
    std::vector<float> coefficient;  // [T, kCoefficients]
    std::vector<float> law;          // [T]
    std::vector<float> correction;   // [E]
};

}  // namespace mind
}  // namespace lopt
