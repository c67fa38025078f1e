// Features of entries, tensors and time, as in tokens.py.
//
// Legend: E entries without those of the tensors, A = E + T, T tensors.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "elementary.h"
#include "mind.h"

namespace lopt {
namespace mind {

constexpr float kRmsGuard = 1e-25f, kRelativeGuard = 1e-8f, kWeightGuard = 1e-8f, kLossGuard = 1e-12f;
constexpr float kLogUnit = 4.0f, kUnknownRest = 0.5f, kLeastHorizon = 1000.0f;
constexpr int64_t kTogether = 64;  // entries whose logarithms are taken together

class Tokens {
  public:
    // Advances the counters of each tensor: how many steps it took, (), and what it remembers of the loss, [4].
    Tokens(const Space& s, const Clock& clock, const float* sums, float* const* steps, float* const* losses,
           int64_t threads)
        : debias(3 * s.tensors), mean(kMoments * s.tensors), logs(4 * s.tensors), tensor(s.tensors * kTensorFeatures),
          root(new float[s.entries]), centre(new float[s.entries]),
          feature(new float[(s.entries + s.tensors) * kFeatures]), s(s), clock(clock), sums(sums), steps(steps),
          losses(losses), threads(threads), correction(kMoments * s.tensors) {
        moments();
        tensor_features();
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

    // Of the data set, which is known.
    void data_features(float* x) const {
        const float told = std::max<float>(clock.horizon, 1.0f), step = clock.step;
        const float horizon = clock.has_horizon ? told : std::max(step / (1 - kUnknownRest), kLeastHorizon);
        x[0] = (std::log(horizon) + std::log(std::max(clock.batch_size, 1.0)) - log_size()) / kLogUnit;
    }

    float log_examples_per_weight() const {
        double weights = 0;
        for (int64_t t = 0; t < s.tensors; ++t) weights += 1.0 / s.inverse_size[s.entries + t];
        return log_size() - std::log(std::max(weights, 1.0));
    }

    std::vector<float> debias;  // [3, T]: logarithms
    std::vector<float> mean;    // [kMoments, T]
    std::vector<float> logs;    // [4, T]: of g g, m m, w w and v, guarded
    std::vector<float> tensor;  // [T, kTensorFeatures]
    // Of a long vector nothing is written to most of the last one, so that no memory is fetched for it.
    std::unique_ptr<float[]> root;     // [E]: one over the root of v, guarded
    std::unique_ptr<float[]> centre;   // [E]: the mean of m times that
    std::unique_ptr<float[]> feature;  // [A, kFeatures]

  private:
    float log_size() const { return std::log(std::max(clock.dataset_size, 1.0)); }

    void moments() {
        const int64_t n = s.tensors;
        std::vector<double> totals(kMoments * n);
        for (int64_t t = 0; t < n; ++t) {
            *steps[t] += 1;
            float d[3];
            for (int k = 0; k < 3; ++k) {
                d[k] = std::log(-std::expm1(*steps[t] * clock.log_decays[k]));
                debias[k * n + t] = d[k];
            }
            const float powers[kMoments] = {0, 2 * d[0], 0, d[2], d[0], d[0] + d[1], d[1], d[0]};
            for (int k = 0; k < kMoments; ++k) correction[k * n + t] = std::exp(-powers[k]);
        }
        for (int k = 0; k < kMoments; ++k)
            for (int64_t e = 0; e < s.rows; ++e) totals[k * n + s.tensor[e]] += sums[k * s.entries + e];
        for (int k = 0; k < kMoments; ++k)
            for (int64_t t = 0; t < n; ++t)
                mean[k * n + t] = static_cast<float>(totals[k * n + t]) * correction[k * n + t] *
                                  s.inverse_size[s.entries + t];
        features(s.entries, s.entries + n);
        in_blocks(s.entries, threads, [&](int64_t first, int64_t last) { features(first, last); });
    }

    // The features of some entries; those of the tensors must be there, or be made.
    void features(int64_t first, int64_t last) {
        for (; first < last; first += kTogether) {
            const int64_t count = std::min(kTogether, last - first);
            if (first >= s.entries || !bare(first, count)) features_of(first, count);
        }
    }

    // Whether no neuron stands at any of these entries, so that nobody reads their features.
    bool bare(int64_t first, int64_t count) {
        bool none = true;
        for (int64_t e = first; e < first + count; ++e) {
            const int64_t t = s.tensor[e];
            root[e] = 1 / std::sqrt(mean_at(V, e) + guard(V, t));
            centre[e] = mean_at(M, e) * root[e];
            none = none && s.to_entries.none(e);
        }
        return none;
    }

    float mean_at(int k, int64_t e) const {
        const int64_t t = s.tensor[e];
        if (e >= s.entries) return mean[k * s.tensors + t];
        return sums[k * s.entries + e] * correction[k * s.tensors + t] * s.inverse_size[e];
    }

    float guard(int k, int64_t t) const { return mean[k * s.tensors + t] * kRelativeGuard + kRmsGuard; }

    void features_of(int64_t first, int64_t count) {
        float m[kMoments][kTogether], r[4][kTogether], l[4][kTogether];
        for (int k = 0; k < kMoments; ++k)
            for (int64_t i = 0; i < count; ++i) m[k][i] = mean_at(k, first + i);
        for (int k = 0; k < 4; ++k)
            for (int64_t i = 0; i < count; ++i) l[k][i] = m[k][i] + guard(k == WW ? WW : V, s.tensor[first + i]);
        for (int k = 0; k < 4; ++k) {
#pragma omp simd
            for (int64_t i = 0; i < count; ++i) r[k][i] = 1 / std::sqrt(l[k][i]), l[k][i] = logarithm(l[k][i]);
        }
        for (int64_t i = 0; i < count; ++i) {
            const int64_t e = first + i, t = s.tensor[e];
            if (e >= s.entries)
                for (int k = 0; k < 4; ++k) logs[k * s.tensors + t] = l[k][i];
            const float common = m[M][i] * r[MM][i];
            float* found = feature.get() + e * kFeatures;
            found[0] = (l[WW][i] - logs[WW * s.tensors + t]) / kLogUnit;
            found[1] = (l[V][i] - logs[V * s.tensors + t]) / kLogUnit;
            found[2] = (l[GG][i] - l[V][i]) / kLogUnit;
            found[3] = (l[MM][i] - l[V][i]) / kLogUnit;
            found[4] = m[GM][i] * r[GG][i] * r[MM][i];
            found[5] = m[MS][i] * r[MM][i] * r[V][i];
            found[6] = m[SW][i] * r[WW][i] * r[V][i];
            found[7] = common * common;
        }
    }

    void tensor_features() {
        const int64_t n = s.tensors;
        double total = 0;
        for (int64_t t = 0; t < n; ++t) total += mean[V * n + t];
        const float network = total / n;
        for (int64_t t = 0; t < n; ++t) {
            float* x = tensor.data() + t * kTensorFeatures;
            const float weight = mean[WW * n + t], gradient = mean[V * n + t];
            std::copy_n(feature.get() + (s.entries + t) * kFeatures, kFeatures, x);
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
        for (int k = 0; k < 3; ++k) {
            const float gain = std::max(1 / (count + 1), s.loss_gains[k]);
            known[1 + k] = lerp(known[1 + k], told[k], gain);
        }
        known[0] = count + 1;
        const float spread = 1 / std::sqrt(known[3] + kLossGuard * known[2] * known[2] + kRmsGuard);
        x[0] = 1, x[1] = std::tanh((known[1] - known[2]) * spread), x[2] = std::tanh((loss - known[2]) * spread);
    }

    const Space& s;
    const Clock& clock;
    const float* sums;  // [kMoments, E]
    float *const *steps, *const *losses;
    const int64_t threads;
    std::vector<float> correction;  // [kMoments, T]: of moving averages that began at zero
};

}  // namespace mind
}  // namespace lopt
