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
#include <cstring>
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

constexpr int64_t kBlock = 1 << 8;  // entries or neurons that a thread takes at a time
constexpr int64_t kTogether = 64;    // entries whose logarithms are taken together
constexpr int kAtOnce = 4;           // neurons that are worked on side by side

struct Sums {  // as in layout.py: result r is weight[r] times the sum of the rows source[first[r]], .. before first[r + 1]
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

// The library's logarithm and exponential are called for one number at a time; these are loops of their own vectors.
// Both are within 2e-7 of the truth, relative to it or to 1; what is not finite stays so.

// log of x > 0: e log 2 + log m with m between 1/√2 and √2, where log m = 2 artanh((m - 1) / (m + 1)).
inline float logarithm(float x) {
    int32_t bits, e;
    std::memcpy(&bits, &x, sizeof bits);
    e = (bits - 0x3f3504f3) >> 23;
    bits -= e * (1 << 23);
    float m;
    std::memcpy(&m, &bits, sizeof m);
    const float s = (m - 1) / (m + 1), z = s * s;
    const float found = e * 0.69314718f + 2 * s * (1 + z * (1 / 3.0f + z * (1 / 5.0f + z * (1 / 7.0f + z / 9))));
    return x < INFINITY ? found : x;
}

// e^x for |x| up to 80, beyond which it stands still: 2^k e^r with r between -log(2) / 2 and log(2) / 2.
inline float exponential(float x) {
    const float bounded = x < -80 ? -80.0f : x > 80 ? 80.0f : x;
    const float shifted = bounded * 1.44269504f + 12582912.0f;  // 3 * 2^22: the last bits of the sum are the integer
    const float k = shifted - 12582912.0f;
    const float r = (bounded - k * 0.693359375f) + k * 2.12194440e-4f;
    const float series = 1 + r * (1 + r * (1 / 2.0f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f + r / 5040))))));
    int32_t power;
    std::memcpy(&power, &shifted, sizeof power);
    power = (power << 23) + 0x3f800000;
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    return series * scale;
}

inline float tangent(float x) {  // tanh
    const float t = exponential(x < 0 ? 2 * x : -2 * x);
    return x < 0 ? (t - 1) / (1 + t) : (1 - t) / (1 + t);
}

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
          coefficient(s.tensors * kCoefficients), law(s.tensors), correction(s.neurons * kRoles) {}

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
        for (; first < last; first += kTogether) features_of(first, std::min(kTogether, last - first));
    }

    void features_of(int64_t first, int64_t count) {
        float guarded[4][kTogether], l[4][kTogether];
        for (int64_t i = 0; i < count; ++i) {
            const int64_t e = first + i, own = s.entries + s.tensor[e];
            const float weight = mean[WW * all + own] * kRelativeGuard + kRmsGuard;
            const float second = mean[V * all + own] * kRelativeGuard + kRmsGuard;
            guarded[GG][i] = mean[GG * all + e] + second, guarded[MM][i] = mean[MM * all + e] + second;
            guarded[WW][i] = mean[WW * all + e] + weight, guarded[V][i] = mean[V * all + e] + second;
        }
        for (int k = 0; k < 4; ++k) {
            float* r = root.data() + k * all + first;
#pragma omp simd
            for (int64_t i = 0; i < count; ++i) r[i] = 1 / std::sqrt(guarded[k][i]), l[k][i] = logarithm(guarded[k][i]);
        }
        for (int64_t i = 0; i < count; ++i) {
            const int64_t e = first + i, t = s.tensor[e];
            if (e >= s.entries)
                for (int k = 0; k < 4; ++k) logs[k * s.tensors + t] = l[k][i];
            const float *gg = root.data() + e, *mm = gg + all, *ww = mm + all, *v = ww + all;
            const float common = mean[M * all + e] * *mm;
            float* found = feature.data() + e * kFeatures;
            found[0] = (l[WW][i] - logs[WW * s.tensors + t]) / kLogUnit;
            found[1] = (l[V][i] - logs[V * s.tensors + t]) / kLogUnit;
            found[2] = (l[GG][i] - l[V][i]) / kLogUnit;
            found[3] = (l[MM][i] - l[V][i]) / kLogUnit;
            found[4] = mean[GM * all + e] * *gg * *mm;
            found[5] = mean[MS * all + e] * *mm * *v;
            found[6] = mean[SW * all + e] * *ww * *v;
            found[7] = common * common;
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
        const int64_t n = s.tensors, k = s.tables;
        std::vector<float> x(s.neurons * c), t(n * c), g(c), tables(k * c), shared(k * c), in((3 + kRoles) * c),
            time(kGlobalFeatures);
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
            for (int64_t i = 0; i < n; ++i) {
                beside(t.data() + i * c, s.tables_to_tensors, i, tables.data(), g.data(), in.data());
                layer.tensors(in.data(), (2 + kRoles) * c, c, t.data() + i * c);
                for (int64_t j = 0; j < c; ++j) t[i * c + j] = relu(t[i * c + j]);
            }
            for (int64_t i = 0; i < k; ++i) {
                beside(tables.data() + i * c, s.tensors_to_tables, i, t.data(), g.data(), in.data());
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
        const std::vector<float> w = theta.read_neurons.transposed(roles + kRoles, c);
        blocks(s.neurons, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) {
                float *own = x + i * c, met[kFeatures];
                std::copy_n(theta.read_neurons.bias, c, own);
                for (int r = 0; r < kRoles; ++r) {
                    if (s.to_neurons.none(i * kRoles + r)) continue;  // what is not there is zero
                    const float *role = w.data() + r * kFeatures * c, *presence = w.data() + (roles + r) * c;
                    s.to_neurons.one(i * kRoles + r, feature.data(), kFeatures, met);
                    add_products<C, 1>(role, met, kFeatures, 0, c, own);
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

    // Its own numbers, those that it meets, role by role, and the network's: [(2 + R) c].
    void beside(const float* own, const Sums& meets, int64_t index, const float* others, const float* g,
                float* in) const {
        std::copy_n(own, c, in);
        for (int r = 0; r < kRoles; ++r) meets.one(index * kRoles + r, others, c, in + (1 + r) * c);
        std::copy_n(g, c, in + (1 + kRoles) * c);
    }

    // The logarithms of the factors of each neuron, by role: [N, R].
    void corrections(const float* x) {
        blocks(s.neurons, [&](int64_t first, int64_t last) {
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
                float factor;
                s.to_entries.one(e, correction.data(), 1, &factor);
                factor = exponential(factor);
                const float r = root[V * all + e];
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
    std::vector<float> correction;   // [N, R]
};

}  // namespace mind
}  // namespace lopt
