// Evaluates an XGBoost model as `save_model("x.json")` writes it: trees of numbers, for regression.

/** A model, ready to predict from values in the order of its features. */
export function load(json) {
  const { learner } = json;
  const { trees } = learner.gradient_booster.model;
  const base = Number(String(learner.learner_model_param.base_score).replace(/[[\]]/g, ""));
  if (!Number.isFinite(base) || !Array.isArray(trees)) throw new Error("this is no regression model of XGBoost");
  const grown = trees.map((tree) => ({
    left: tree.left_children,
    right: tree.right_children,
    feature: tree.split_indices,
    // Where a node splits; at a leaf, what it adds.
    value: tree.split_conditions,
    missingLeft: tree.default_left,
  }));
  return { base, trees: grown, features: learner.feature_names };
}

export function predict(model, values) {
  const row = values.map(Math.fround); // the trees were grown in 32 bits
  let sum = model.base;
  for (const tree of model.trees) {
    let node = 0;
    while (tree.left[node] !== -1) {
      const value = row[tree.feature[node]];
      const goesLeft = Number.isNaN(value) ? tree.missingLeft[node] : value < Math.fround(tree.value[node]);
      node = goesLeft ? tree.left[node] : tree.right[node];
    }
    sum += tree.value[node];
  }
  return sum;
}
