// SPDX-License-Identifier: Apache-2.0
#include "lk/train/loss_curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace lk {
namespace {

// Picture, and the plot within; to its right the legend.
constexpr double kWidth = 960, kLeft = 70, kRight = 720, kTop = 40, kBottom = 470, kHeight = 520;
constexpr size_t kMaxPoints = 1000;  // of a line; more are averaged
constexpr size_t kMaxThin = 8;       // with more jobs than that only the means are drawn
constexpr size_t kMaxLegend = 24;
// Okabe and Ito: told apart by colour-blind readers too. Then again, dashed.
constexpr std::array<const char*, 8> kColors{"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                             "#E69F00", "#56B4E9", "#000000", "#999999"};

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '>')
      out += "&gt;";
    else
      out += c;
  }
  return out;
}

struct Scale {
  double min = 0, max = 1, from = 0, to = 1;
  double at(double value) const { return from + (value - min) / (max - min) * (to - from); }
};

// Round numbers, about `count` of them, within the scale.
std::vector<double> ticks(const Scale& scale, int count, bool whole) {
  const double raw = (scale.max - scale.min) / count;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double each : {1.0, 2.0, 5.0})
    if (each * power >= raw * 0.999) {
      step = each * power;
      break;
    }
  if (whole) step = std::max(1.0, std::round(step));
  std::vector<double> values;
  for (double k = std::ceil(scale.min / step - 1e-9); k * step <= scale.max + step * 1e-9; ++k)
    values.push_back(k * step + 0.0);  // not -0
  return values;
}

std::vector<LossCurve::Point> finite_points(const std::vector<LossCurve::Point>& points) {
  std::vector<LossCurve::Point> out;
  std::copy_if(points.begin(), points.end(), std::back_inserter(out),
               [](const LossCurve::Point& point) { return std::isfinite(point.loss); });
  return out;
}

// Exponential running mean over about a thirtieth of the run, without a bias towards the start.
std::vector<LossCurve::Point> smoothed(const std::vector<LossCurve::Point>& points) {
  const double keep = 1 - 1 / std::max(1.0, static_cast<double>(points.size()) / 30);
  double sum = 0, weight = 0;
  std::vector<LossCurve::Point> out;
  for (const LossCurve::Point& point : points) {
    sum = keep * sum + point.loss;
    weight = keep * weight + 1;
    out.push_back({point.step, sum / weight});
  }
  return out;
}

std::vector<LossCurve::Point> thinned(const std::vector<LossCurve::Point>& points) {
  if (points.size() <= kMaxPoints) return points;
  std::vector<LossCurve::Point> out;
  for (size_t k = 0; k < kMaxPoints; ++k) {
    const size_t begin = k * points.size() / kMaxPoints, end = (k + 1) * points.size() / kMaxPoints;
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += points[i].loss;
    out.push_back({points[end - 1].step, sum / static_cast<double>(end - begin)});
  }
  return out;
}

struct Style {
  const char* color;
  const char* dash;  // attribute, or nothing
};
Style style_of(size_t job) {
  return {kColors[job % kColors.size()], job < kColors.size() ? "" : " stroke-dasharray=\"7 3\""};
}

struct Plot {
  Scale x, y;
  std::string svg;

  void line(const std::vector<LossCurve::Point>& points, const std::string& attributes) {
    if (points.empty()) return;
    svg += "<polyline fill=\"none\" " + attributes + " points=\"";
    for (const LossCurve::Point& point : points)
      svg += fmt::format("{:.1f},{:.1f} ", x.at(static_cast<double>(point.step)), y.at(point.loss));
    svg.back() = '"';
    svg += "/>\n";
  }
  void text(double at_x, double at_y, const char* anchor, const std::string& text, const char* more = "") {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", at_x, at_y, anchor, more,
                       escape(text));
  }
  void axes() {
    for (const double value : ticks(x, 8, true)) {
      svg += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#ddd\"/>\n", x.at(value),
                         kTop, kBottom);
      text(x.at(value), kBottom + 18, "middle", fmt::format("{:.0f}", value));
    }
    for (const double value : ticks(y, 6, false)) {
      svg += fmt::format("<line x1=\"{1}\" x2=\"{2}\" y1=\"{0:.1f}\" y2=\"{0:.1f}\" stroke=\"#ddd\"/>\n", y.at(value),
                         kLeft, kRight);
      text(kLeft - 8, y.at(value) + 4, "end", fmt::format("{:.4g}", value));
    }
    svg += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#333\"/>\n", kLeft,
                       kTop, kRight - kLeft, kBottom - kTop);
    text((kLeft + kRight) / 2, kBottom + 40, "middle", "optimiser steps");
    text(18, (kTop + kBottom) / 2, "middle", "loss (nats per token)", " transform=\"rotate(-90 18 255)\"");
    text(kLeft, kTop - 14, "start", "Training loss", " font-size=\"16\" font-weight=\"bold\"");
  }
};

}  // namespace

std::string loss_curve_svg(const std::vector<LossCurve>& given) {
  struct Lines {
    std::vector<LossCurve::Point> raw, mean, eval;
  };
  std::vector<Lines> all;
  double last_step = 1, low = INFINITY, high = -INFINITY;
  for (const LossCurve& curve : given) {
    const std::vector<LossCurve::Point> train = finite_points(curve.train);
    Lines& lines = all.emplace_back(Lines{thinned(train), thinned(smoothed(train)), finite_points(curve.eval)});
    // The scale is that of means and evaluations; single steps beyond it are cut.
    for (const auto* points : {&lines.mean, &lines.eval})
      for (const LossCurve::Point& point : *points) {
        last_step = std::max(last_step, static_cast<double>(point.step));
        low = std::min(low, point.loss), high = std::max(high, point.loss);
      }
  }
  if (!(low <= high)) low = 0, high = 1;
  const double margin = high > low ? 0.06 * (high - low) : std::max(0.5, 0.1 * std::abs(high));
  low = low >= 0 ? std::max(0.0, low - margin) : low - margin;
  high += margin;
  Plot plot{.x = {0, last_step, kLeft, kRight}, .y = {low, high, kBottom, kTop}, .svg = {}};
  plot.svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
      "<clipPath id=\"plot\"><rect x=\"{2}\" y=\"{3}\" width=\"{4}\" height=\"{5}\"/></clipPath>\n",
      kWidth, kHeight, kLeft, kTop, kRight - kLeft, kBottom - kTop);
  plot.axes();
  plot.svg += "<g clip-path=\"url(#plot)\">\n";
  for (size_t job = 0; job < all.size() && all.size() <= kMaxThin; ++job)
    plot.line(all[job].raw, fmt::format("stroke=\"{}\" stroke-opacity=\"0.25\"", style_of(job).color));
  for (size_t job = 0; job < all.size(); ++job) {
    const Style style = style_of(job);
    plot.line(all[job].mean, fmt::format("stroke=\"{}\" stroke-width=\"2\"{}", style.color, style.dash));
    plot.line(all[job].eval, fmt::format("stroke=\"{}\" stroke-dasharray=\"3 3\"", style.color));
  }
  plot.svg += "</g>\n";
  for (size_t job = 0; job < all.size(); ++job)
    for (const LossCurve::Point& point : all[job].eval)
      plot.svg +=
          fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"#fff\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                      plot.x.at(static_cast<double>(point.step)), plot.y.at(point.loss), style_of(job).color);
  double y = kTop + 8;
  const auto key = [&](const std::string& attributes, const std::string& label) {
    plot.svg += fmt::format("<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", kRight + 16, kRight + 40, y,
                            y, attributes);
    plot.text(kRight + 46, y + 4, "start", label.size() > 28 ? label.substr(0, 27) + "\u2026" : label);
    y += 18;
  };
  for (size_t job = 0; job < all.size() && job < kMaxLegend; ++job)
    key(fmt::format("stroke=\"{}\" stroke-width=\"2\"{}", style_of(job).color, style_of(job).dash), given[job].job);
  if (all.size() > kMaxLegend)
    plot.text(kRight + 46, y + 4, "start", fmt::format("and {} more", all.size() - kMaxLegend));
  const bool has_eval = std::any_of(all.begin(), all.end(), [](const Lines& lines) { return !lines.eval.empty(); });
  if (has_eval && all.size() <= kMaxLegend - 2) {
    y += 8;
    key("stroke=\"#555\" stroke-width=\"2\"", "training, running mean");
    plot.svg += fmt::format(
        "<circle cx=\"{}\" cy=\"{:.1f}\" r=\"4\" fill=\"#fff\" stroke=\"#555\" stroke-width=\"2\"/>\n", kRight + 28, y);
    key("stroke=\"#555\" stroke-dasharray=\"3 3\"", "evaluation");
  }
  return plot.svg + "</svg>\n";
}

}  // namespace lk
