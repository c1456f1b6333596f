//! Variance, covariance and regression with state that is saved and restored exactly.
//!
//! The accumulators of the engine's libraries update by the same formulas, but merge saved state with a rounding error,
//! so that results would depend on where steps and checkpoints fell. Here merging into an empty group is assignment.
//! Source: Welford 1962, "Note on a method for calculating corrected sums of squares and products"; the regression
//! functions as PostgreSQL defines them. Leaves out DISTINCT and FILTER (`call`). Holds nothing between steps.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, UInt64Array};
use arrow::datatypes::{DataType, Float64Type, UInt64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use std::sync::Arc;

/// What is computed from the moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// `var_pop(x)`
    VarPop,
    /// `var_samp(x)`
    VarSamp,
    /// `stddev_pop(x)`
    StddevPop,
    /// `stddev_samp(x)`
    StddevSamp,
    /// `covar_pop(x, y)`
    CovarPop,
    /// `covar_samp(x, y)`
    CovarSamp,
    /// `regr_slope(y, x)`
    Slope,
    /// `regr_intercept(y, x)`
    Intercept,
    /// `regr_r2(y, x)`
    R2,
    /// `regr_avgx(y, x)`
    AvgX,
    /// `regr_avgy(y, x)`
    AvgY,
    /// `regr_sxx(y, x)`
    Sxx,
    /// `regr_syy(y, x)`
    Syy,
    /// `regr_sxy(y, x)`
    Sxy,
}

impl Moment {
    /// The aggregate called `name`, when it is one of these over doubles.
    pub(crate) fn of(name: &str, arguments: &[DataType], result: &DataType) -> Option<Self> {
        let is_double = |data_type: &DataType| *data_type == DataType::Float64;
        if !is_double(result) || !arguments.iter().all(is_double) {
            return None;
        }
        Some(match name {
            "var_pop" => Self::VarPop,
            "var" | "var_samp" => Self::VarSamp,
            "stddev_pop" => Self::StddevPop,
            "stddev" | "stddev_samp" => Self::StddevSamp,
            "covar_pop" => Self::CovarPop,
            "covar_samp" => Self::CovarSamp,
            "regr_slope" => Self::Slope,
            "regr_intercept" => Self::Intercept,
            "regr_r2" => Self::R2,
            "regr_avgx" => Self::AvgX,
            "regr_avgy" => Self::AvgY,
            "regr_sxx" => Self::Sxx,
            "regr_syy" => Self::Syy,
            "regr_sxy" => Self::Sxy,
            _ => return None,
        })
    }

    /// The types of the saved state.
    pub(crate) fn state_types() -> Vec<DataType> {
        let mut types = vec![DataType::UInt64];
        types.resize(6, DataType::Float64);
        types
    }

    fn value(self, group: &Group) -> Option<f64> {
        let count = group.count as f64;
        let sample = group.count.saturating_sub(1) as f64;
        let (at_least_1, at_least_2) = (group.count >= 1, group.count >= 2);
        // As the bounded engine divides first, and rounding must be equal.
        let (var_x, var_y, covar) = (group.m2_x / count, group.m2_y / count, group.c / count);
        let (is_wanted, value) = match self {
            Self::VarPop => (at_least_1, var_x),
            Self::VarSamp => (at_least_2, group.m2_x / sample),
            Self::StddevPop => (at_least_1, var_x.sqrt()),
            Self::StddevSamp => (at_least_2, (group.m2_x / sample).sqrt()),
            Self::CovarPop => (at_least_1, covar),
            Self::CovarSamp => (at_least_2, group.c / sample),
            Self::Slope => (at_least_2 && var_x != 0.0, covar / var_x),
            Self::Intercept => (at_least_2 && var_x != 0.0, group.mean_y - (covar / var_x) * group.mean_x),
            Self::R2 => (at_least_2 && var_x != 0.0 && var_y != 0.0, (covar * covar) / (var_x * var_y)),
            Self::AvgX => (at_least_1, group.mean_x),
            Self::AvgY => (at_least_1, group.mean_y),
            Self::Sxx => (at_least_1, group.m2_x),
            Self::Syy => (at_least_1, group.m2_y),
            Self::Sxy => (at_least_1, group.c),
        };
        is_wanted.then_some(value)
    }

    /// Positions of x and y among the arguments; a function of x alone has its only argument twice.
    fn arguments(self) -> (usize, usize) {
        match self {
            Self::VarPop | Self::VarSamp | Self::StddevPop | Self::StddevSamp => (0, 0),
            Self::CovarPop | Self::CovarSamp => (0, 1),
            _ => (1, 0),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Group {
    count: u64,
    mean_x: f64,
    mean_y: f64,
    m2_x: f64,
    m2_y: f64,
    c: f64,
}

impl Group {
    fn add(&mut self, x: f64, y: f64) {
        self.count += 1;
        let count = self.count as f64;
        let (delta_x, delta_y) = (x - self.mean_x, y - self.mean_y);
        self.mean_x += delta_x / count;
        self.mean_y += delta_y / count;
        self.m2_x += delta_x * (x - self.mean_x);
        self.m2_y += delta_y * (y - self.mean_y);
        self.c += delta_x * (y - self.mean_y);
    }

    /// Chan's formula, which is not exact; into an empty group, assignment, which is.
    fn merge(&mut self, other: &Self) {
        if self.count == 0 || other.count == 0 {
            if other.count > 0 {
                *self = *other;
            }
            return;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let (delta_x, delta_y) = (other.mean_x - self.mean_x, other.mean_y - self.mean_y);
        self.count += other.count;
        let count = self.count as f64;
        self.mean_x += delta_x * b / count;
        self.mean_y += delta_y * b / count;
        self.m2_x += other.m2_x + delta_x * delta_x * a * b / count;
        self.m2_y += other.m2_y + delta_y * delta_y * a * b / count;
        self.c += other.c + delta_x * delta_y * a * b / count;
    }
}

/// The moments of all groups.
#[derive(Debug)]
pub(crate) struct Moments {
    moment: Moment,
    groups: Vec<Group>,
}

impl Moments {
    /// No groups yet.
    pub(crate) fn new(moment: Moment) -> Self {
        Self { moment, groups: Vec::new() }
    }
}

fn column(values: &[ArrayRef], index: usize) -> Result<&Float64Array> {
    values
        .get(index)
        .and_then(|array| array.as_primitive_opt::<Float64Type>())
        .ok_or_else(|| DataFusionError::Internal("moments are taken of doubles".to_owned()))
}

impl GroupsAccumulator for Moments {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.groups.resize(total_num_groups, Group::default());
        let (x, y) = self.moment.arguments();
        let (x, y) = (column(values, x)?, column(values, y)?);
        for (row, group) in group_indices.iter().enumerate() {
            let is_wanted = opt_filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if is_wanted && x.is_valid(row) && y.is_valid(row) {
                self.groups[*group].add(x.value(row), y.value(row));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let groups = emit_to.take_needed(&mut self.groups);
        Ok(Arc::new(groups.iter().map(|group| self.moment.value(group)).collect::<Float64Array>()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let groups = emit_to.take_needed(&mut self.groups);
        let counts: UInt64Array = groups.iter().map(|group| Some(group.count)).collect();
        let double = |part: fn(&Group) -> f64| -> ArrayRef {
            Arc::new(groups.iter().map(|group| Some(part(group))).collect::<Float64Array>())
        };
        Ok(vec![
            Arc::new(counts),
            double(|group| group.mean_x),
            double(|group| group.mean_y),
            double(|group| group.m2_x),
            double(|group| group.m2_y),
            double(|group| group.c),
        ])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.groups.resize(total_num_groups, Group::default());
        let counts = values.first().and_then(|array| array.as_primitive_opt::<UInt64Type>());
        let counts = counts.ok_or_else(|| DataFusionError::Internal("moments have a count".to_owned()))?;
        let parts = (1..6).map(|index| column(values, index)).collect::<Result<Vec<_>>>()?;
        for (row, group) in group_indices.iter().enumerate() {
            let part = |index: usize| parts[index].value(row);
            self.groups[*group].merge(&Group {
                count: counts.value(row),
                mean_x: part(0),
                mean_y: part(1),
                m2_x: part(2),
                m2_y: part(3),
                c: part(4),
            });
        }
        Ok(())
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |array| array.len());
        let mut each = Self::new(self.moment);
        each.update_batch(values, &(0..rows).collect::<Vec<_>>(), opt_filter, rows)?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.groups.capacity() * size_of::<Group>()
    }
}
