//! Functions and operators where PostgreSQL differs from the engine's libraries.
//!
//! Owns checked arithmetic, casts, aggregates with PostgreSQL's result types, and the session functions drivers call.
//! Leaves out parsing and formatting of values (`types`). Called by `plan`. Pure: a crash does nothing to it.

pub mod arith;
mod around;
pub(crate) mod assign;
mod bounded;
pub(crate) mod by_value;
pub mod cast;
mod decimal;
mod domain;
mod encode;
pub mod errors;
mod exact;
mod extract;
pub(crate) mod histogram;
pub(crate) mod json;
mod ordered_set;
pub(crate) mod part;
mod pattern;
mod rounding;
pub(crate) mod series;
pub mod session;
pub(crate) mod session_window;
pub(crate) mod span;
mod temporal;
mod text;
pub(crate) mod total_order;
pub(crate) mod typed;
pub mod window;
pub(crate) mod within;
mod zone;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};
use sqlparser::ast::{ObjectName, ObjectNamePart};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Functions of the library that mean something else in PostgreSQL, or show the inside of the engine.
const HIDDEN: [&str; 25] = [
    "arrow_cast",
    "arrow_field",
    "arrow_metadata",
    "arrow_try_cast",
    "arrow_typeof",
    "cast_to_type",
    "get_field",
    "input_file_name",
    "make_map",
    "map",
    "metadata",
    "named_struct",
    "range",
    "row",
    "struct",
    "to_char",
    "to_date",
    "to_time",
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
    "try_cast_to_type",
    "version",
    "with_metadata",
];

/// Every function a statement can call, by name.
#[derive(Debug)]
pub struct Registry {
    scalars: HashMap<String, Arc<ScalarUDF>>,
    aggregates: HashMap<String, Arc<AggregateUDF>>,
    windows: HashMap<String, Arc<WindowUDF>>,
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// The functions there are; the same for every statement.
pub fn registry() -> &'static Registry {
    &REGISTRY
}

impl Registry {
    fn new() -> Self {
        let mut scalars = HashMap::new();
        let library = datafusion::functions::all_default_functions();
        let nested = datafusion::functions_nested::all_default_nested_functions();
        for function in library.into_iter().chain(nested).filter(|function| !HIDDEN.contains(&function.name())) {
            add(&mut scalars, function.name().to_owned(), function.aliases().to_vec(), function);
        }
        let mut own = vec![
            arith::Negate::function(),
            series::function(),
            histogram::histogram(),
            within::function(),
            zone::function(),
            session::now_function(),
        ];
        own.extend(arith::Arithmetic::ALL.map(arith::Arithmetic::function));
        own.extend(extract::functions());
        own.extend(text::functions());
        own.extend(pattern::functions());
        own.extend(encode::functions());
        own.extend(json::functions());
        own.extend(part::functions());
        own.extend(window::functions());
        let mut wrap = |names: &[&str], call| {
            own.extend(names.iter().filter_map(|name| Some(around::around(scalars.get(*name)?, call))));
        };
        wrap(&["round"], rounding::round as around::Call);
        wrap(&domain::NAMES, domain::checked);
        wrap(&bounded::NAMES, bounded::bounded);
        for function in own {
            let function = Arc::new(function);
            add(&mut scalars, function.name().to_owned(), function.aliases().to_vec(), function);
        }
        if let Some(function) = scalars.get("signum").cloned() {
            scalars.insert("sign".to_owned(), function);
        }
        // PostgreSQL's take out, and replace, each such element.
        for (name, of_library) in [("array_remove", "array_remove_all"), ("array_replace", "array_replace_all")] {
            if let Some(function) = scalars.get(of_library).cloned() {
                scalars.insert(name.to_owned(), function);
            }
        }
        let mut aggregates = HashMap::new();
        for function in datafusion::functions_aggregate::all_default_aggregate_functions() {
            add(&mut aggregates, function.name().to_owned(), function.aliases().to_vec(), function);
        }
        aggregates.remove("mean");
        for function in [exact::sum(), exact::avg(), ordered_set::mode(), ordered_set::percentile_disc()] {
            aggregates.insert(function.name().to_owned(), Arc::new(function));
        }
        if let Some(function) = aggregates.get("var_samp").or_else(|| aggregates.get("var")).cloned() {
            aggregates.insert("variance".to_owned(), function);
        }
        if let Some(function) = aggregates.get("bool_and").cloned() {
            aggregates.insert("every".to_owned(), function);
        }
        for (name, base) in crate::plan::ksqldb::NAMES {
            if let Some(function) = aggregates.get(base).cloned() {
                aggregates.insert(name.to_owned(), function);
            }
        }
        let mut windows = HashMap::new();
        for function in datafusion::functions_window::all_default_window_functions() {
            add(&mut windows, function.name().to_owned(), function.aliases().to_vec(), function);
        }
        Self { scalars, aggregates, windows }
    }

    /// The scalar function `name`.
    pub fn scalar(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalars.get(name).cloned()
    }

    /// The aggregate function `name`.
    pub fn aggregate(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.aggregates.get(name).cloned()
    }

    /// Every aggregate function, once.
    pub(crate) fn aggregates(&self) -> Vec<Arc<AggregateUDF>> {
        let own = self.aggregates.iter().filter(|(name, function)| name.as_str() == function.name());
        own.map(|(_, function)| Arc::clone(function)).collect()
    }

    /// The window function `name`.
    pub fn window(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.windows.get(name).cloned()
    }

    /// True when a statement may call `name`.
    pub fn has(&self, name: &str) -> bool {
        let is_known = self.scalars.contains_key(name) || self.windows.contains_key(name);
        is_known
            || self.aggregates.contains_key(name)
            || ["unnest", "explode", "mod"].contains(&name)
            || session::is_session_function(name)
            || session::is_setting_function(name)
    }

    /// True when `name` is an aggregate.
    pub fn is_aggregate_name(&self, name: &str) -> bool {
        self.aggregates.contains_key(name)
    }

    /// True when `name` is a window function that is no aggregate.
    pub fn is_window_name(&self, name: &str) -> bool {
        self.windows.contains_key(name)
    }

    /// True when the last part of `name` is an aggregate.
    pub fn is_aggregate(&self, name: &ObjectName) -> bool {
        let last = name.0.last().and_then(ObjectNamePart::as_ident);
        last.is_some_and(|ident| self.is_aggregate_name(&ident.value.to_lowercase()))
    }

    /// Every name a statement can call, with what it is, sorted.
    pub fn names(&self) -> Vec<(String, &'static str)> {
        let scalars = self.scalars.keys().map(|name| (name.clone(), "scalar"));
        let aggregates = self.aggregates.keys().map(|name| (name.clone(), "aggregate"));
        let windows = self.windows.keys().map(|name| (name.clone(), "window"));
        let mut names: Vec<_> =
            scalars.chain(aggregates).chain(windows).filter(|(name, _)| !name.starts_with('$')).collect();
        names.sort();
        names
    }
}

fn add<T>(functions: &mut HashMap<String, Arc<T>>, name: String, aliases: Vec<String>, function: Arc<T>) {
    for alias in aliases {
        functions.insert(alias.to_lowercase(), Arc::clone(&function));
    }
    functions.insert(name.to_lowercase(), function);
}
