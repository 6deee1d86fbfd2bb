"use strict";
// A classic script, so that the remembered theme is there before the first paint.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("parm-mlx.theme")) ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto";
}
