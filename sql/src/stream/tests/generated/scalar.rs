//! Random expressions: of a type, over columns, that give no errors; aggregates, window functions and sub-queries.

use super::ast::{Expr, Query, Select, Type};
use super::grammar::{Column, Grammar};
use super::schema::{name_of, value};

/// What a type has an operator for: `§` and the types that stand for them.
fn operators(of: Type) -> &'static [(&'static str, &'static [Type])] {
    use Type::{Big, Bool, Bytes, Date, Double, Int, Interval, Json, Num, Text, Time, Uuid};
    match of {
        Int => &[
            ("(§ + §)", &[Int, Int]),
            ("(§ % 3)", &[Int]),
            ("(- §)", &[Int]),
            ("(§ / 2)", &[Int]),
            ("abs(§)", &[Int]),
            ("length(§)", &[Text]),
            ("nullif(§, 2)", &[Int]),
            ("coalesce(§, 7)", &[Int]),
            ("greatest(§, §)", &[Int, Int]),
            ("CASE WHEN § THEN § ELSE § END", &[Bool, Int, Int]),
            ("extract(second FROM §)::integer", &[Time]),
        ],
        Big => &[("(§ + 1)", &[Big]), ("§::bigint", &[Int]), ("coalesce(§, §)", &[Big, Big])],
        Num => &[("(§ + §)", &[Num, Num]), ("(§ - 1.5)", &[Num]), ("round(§, 1)", &[Num]), ("coalesce(§, 0)", &[Num])],
        Double => &[("(§ * 2)", &[Double]), ("(§ + §)", &[Double, Double]), ("§::double precision", &[Int])],
        Text => &[
            ("upper(§)", &[Text]),
            ("(§ || §)", &[Text, Text]),
            ("coalesce(§, 'z')", &[Text]),
            ("substr(§, 1, 1)", &[Text]),
            ("§::text", &[Int]),
            ("§::text", &[Bool]),
            ("§::text", &[Date]),
            ("CASE § WHEN 1 THEN 'one' WHEN 2 THEN § END", &[Int, Text]),
        ],
        Bool => &[
            ("(§ < §)", &[Int, Int]),
            ("(§ = §)", &[Int, Int]),
            ("(§ <> §)", &[Text, Text]),
            ("(§ > §)", &[Double, Double]),
            ("(§ >= §)", &[Time, Time]),
            ("(§ = §)", &[Json, Json]),
            ("(§ < §)", &[Interval, Interval]),
            ("(§ <= §)", &[Num, Num]),
            ("(§ = §)", &[Bytes, Bytes]),
            ("(§ IS NULL)", &[Int]),
            ("(§ IS NOT NULL)", &[Text]),
            ("(§ IS DISTINCT FROM §)", &[Int, Int]),
            ("(§ AND §)", &[Bool, Bool]),
            ("(§ OR §)", &[Bool, Bool]),
            ("(NOT §)", &[Bool]),
            ("(§ IN (1, 3, 5))", &[Int]),
            ("(§ NOT IN (0, 2))", &[Int]),
            ("(§ BETWEEN § AND §)", &[Int, Int, Int]),
            ("(§ LIKE 'a%')", &[Text]),
            ("(§ % 2 = 0)", &[Int]),
        ],
        Time => &[
            ("date_trunc('minute', coalesce(§, '2024-01-01 00:00:07Z'))", &[Time]),
            ("(§ + INTERVAL '5 seconds')", &[Time]),
            ("date_bin('10 seconds', §, '1970-01-01')", &[Time]),
        ],
        Date => &[("(§ + 1)", &[Date]), ("§::date", &[Time])],
        Bytes => &[("coalesce(§, '\\x07')", &[Bytes])],
        Uuid => &[("nullif(§, §)", &[Uuid, Uuid])],
        Interval => &[("(§ - §)", &[Time, Time]), ("coalesce(§, '2 days')", &[Interval])],
        Json => &[("coalesce(§, '{}')", &[Json]), ("(§ -> 'a')", &[Json])],
        Type::Other => &[],
    }
}

/// Aggregates, what they take and what they give; any that depends on an order has one.
const CALLS: &[(&str, &[Type], Type)] = {
    use Type::{Big, Bool, Date, Double, Int, Interval, Json, Num, Other, Text, Time};
    &[
        ("count(*)", &[], Big),
        ("count(§)", &[Int], Big),
        ("count(§)", &[Text], Big),
        ("count(DISTINCT §)", &[Int], Big),
        ("count(DISTINCT §)", &[Text], Big),
        ("count(DISTINCT §)", &[Json], Big),
        ("count(DISTINCT §)", &[Double], Big),
        ("sum(§)", &[Int], Big),
        ("sum(§)", &[Big], Num),
        ("sum(§)", &[Num], Num),
        ("sum(§)", &[Double], Double),
        ("sum(DISTINCT §)", &[Int], Big),
        ("avg(§)", &[Int], Num),
        ("avg(§)", &[Double], Double),
        ("avg(DISTINCT §)", &[Num], Num),
        ("min(§)", &[Int], Int),
        ("max(§)", &[Int], Int),
        ("min(§)", &[Text], Text),
        ("max(§)", &[Text], Text),
        ("max(§)", &[Num], Num),
        ("min(§ + 0)", &[Double], Double),
        ("max(§ + 0)", &[Double], Double),
        ("min(§)", &[Time], Time),
        ("max(§)", &[Date], Date),
        ("max(§)", &[Interval], Interval),
        ("bool_and(§)", &[Bool], Bool),
        ("bool_or(§)", &[Bool], Bool),
        ("bit_xor(§)", &[Int], Int),
        ("array_agg(§ ORDER BY §)", &[Int], Other),
        ("array_agg(DISTINCT § ORDER BY §)", &[Int], Other),
        ("string_agg(§, ',' ORDER BY § DESC)", &[Text], Text),
        ("percentile_disc(0.5) WITHIN GROUP (ORDER BY §)", &[Int], Int),
        ("percentile_cont(0.3) WITHIN GROUP (ORDER BY §)", &[Int], Double),
        ("mode() WITHIN GROUP (ORDER BY §)", &[Text], Text),
        ("round(stddev_pop(§)::numeric, 6)", &[Int], Other),
        ("round(var_samp(§)::numeric, 6)", &[Int], Other),
        ("topk(§, 2)", &[Int], Other),
        ("count_distinct(§)", &[Text], Big),
    ]
};

impl Grammar<'_> {
    pub(super) fn literal(&mut self, of: Type) -> Expr {
        let text = if self.one_in(8) { "NULL".to_owned() } else { format!("'{}'", value(self.random, of)) };
        Expr::new(of, format!("{text}::{}", name_of(of)), Vec::new())
    }

    /// An expression that has a type.
    pub(super) fn expr(&mut self, of: Type, columns: &[Column], depth: usize) -> Expr {
        let fitting: Vec<&Column> = columns.iter().filter(|column| column.of == of).collect();
        let operators = operators(of);
        match self.random.below(10) {
            0..=4 if !fitting.is_empty() => self.pick(&fitting).expr(),
            5..=8 if depth > 0 && !operators.is_empty() => self.operation(of, columns, depth),
            _ if fitting.is_empty() && depth > 0 && !operators.is_empty() => self.operation(of, columns, depth),
            _ if !fitting.is_empty() && !self.one_in(4) => self.pick(&fitting).expr(),
            _ => self.literal(of),
        }
    }

    fn operation(&mut self, of: Type, columns: &[Column], depth: usize) -> Expr {
        let (head, types) = self.pick(operators(of));
        let args = types.iter().map(|of| self.expr(*of, columns, depth - 1)).collect();
        Expr::new(of, head, args)
    }

    /// An aggregate.
    pub(super) fn call(&mut self, columns: &[Column]) -> Expr {
        let has = |of: &Type| columns.iter().any(|column| column.of == *of);
        let fitting: Vec<&(&str, &[Type], Type)> = CALLS.iter().filter(|(_, types, _)| types.iter().all(has)).collect();
        let (head, types, of) = match self.one_in(5) {
            true => self.pick(CALLS),
            false => *self.pick(&fitting),
        };
        let mut args: Vec<Expr> = types.iter().map(|of| self.expr(*of, columns, 1)).collect();
        let mut head = head.to_owned();
        if head.matches('§').count() > args.len() {
            args.push(args[0].clone());
        }
        if self.one_in(6) {
            head.push_str(" FILTER (WHERE §)");
            args.push(self.expr(Type::Bool, columns, 1));
        }
        Expr::new(of, head, args)
    }

    /// Something made of an aggregate.
    pub(super) fn around(&mut self, call: Expr) -> Expr {
        match (self.random.below(6), call.of) {
            (0, Type::Big) => Expr::new(Type::Big, "(§ * 2 + 1)", vec![call]),
            (0, Type::Text) => Expr::new(Type::Text, "coalesce(§, 'none')", vec![call]),
            (0, Type::Int) => Expr::new(Type::Int, "coalesce(§, -1)", vec![call]),
            _ => call,
        }
    }

    pub(super) fn comparison(&mut self, call: Expr) -> Expr {
        match call.of {
            Type::Big | Type::Int | Type::Num => {
                let head = self.pick(&["§ > 1", "§ < 3", "§ <> 2", "§ % 2 = 0"]);
                Expr::new(Type::Bool, head, vec![call])
            }
            Type::Bool => call,
            _ => Expr::new(Type::Bool, self.pick(&["§ IS NOT NULL", "§ IS NULL"]), vec![call]),
        }
    }

    /// An order in which rows that are next to each other in any order are equal.
    pub(super) fn order(&mut self, columns: &[Column]) -> Vec<Expr> {
        let mut order = Vec::new();
        if self.one_in(2) {
            let of = self.pick(columns).of;
            let key = self.expr(of, columns, 1);
            order.push(Expr::new(key.of, self.pick(&["§", "§ DESC", "§ NULLS FIRST", "§ DESC NULLS LAST"]), vec![key]));
        }
        let mut rest = columns.to_vec();
        while !rest.is_empty() {
            let column = rest.swap_remove(self.random.below(rest.len() as u64) as usize).expr();
            let head = self.pick(&["§", "§", "§ DESC", "§ NULLS FIRST"]);
            let is_loose = matches!(column.of, Type::Double | Type::Interval | Type::Json);
            order.push(Expr::new(column.of, head, vec![column.clone()]));
            if is_loose {
                order.push(Expr::new(Type::Text, "§::text", vec![column]));
            }
        }
        order
    }

    /// A window function over all rows, or those of a group, in a total order.
    pub(super) fn ranked(&mut self, call: &str, of: Type, columns: &[Column]) -> Expr {
        let mut args = Vec::new();
        let mut head = format!("{call} OVER (");
        if !self.one_in(3) {
            let of = self.pick(columns).of;
            args.push(self.expr(of, columns, 1));
            head.push_str("PARTITION BY § ");
        }
        let order = self.order(columns);
        head.push_str(&format!("ORDER BY {})", vec!["§"; order.len()].join(", ")));
        args.extend(order);
        Expr::new(of, head, args)
    }

    pub(super) fn over_call(&mut self, columns: &[Column]) -> Expr {
        let argument = self.expr(Type::Int, columns, 1).to_string();
        let (call, of) = match self.random.below(9) {
            0 => ("row_number()".to_owned(), Type::Big),
            1 => ("rank()".to_owned(), Type::Big),
            2 => ("dense_rank()".to_owned(), Type::Big),
            3 => (format!("lag({argument})"), Type::Int),
            4 => (format!("lead({argument}, 2, 0)"), Type::Int),
            5 => (format!("sum({argument})"), Type::Big),
            6 => ("count(*)".to_owned(), Type::Big),
            7 => (format!("max({argument})"), Type::Int),
            _ => (format!("first_value({argument})"), Type::Int),
        };
        if self.one_in(3) && matches!(of, Type::Big) && !call.ends_with("()") {
            let partition = self.pick(columns).expr();
            return Expr::new(of, format!("{call} OVER (PARTITION BY §)"), vec![partition]);
        }
        let ranked = self.ranked(&call, of, columns);
        let takes_frame = call.starts_with("sum") || call.starts_with("count") || call.starts_with("max");
        match takes_frame && self.one_in(3) {
            false => ranked,
            true => {
                let frame = self.pick(&[
                    " ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING)",
                    " ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)",
                    " ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)",
                ]);
                let head = format!("{}{frame}", ranked.head.trim_end_matches(')'));
                Expr { head, ..ranked }
            }
        }
    }

    /// EXISTS, IN and their opposites.
    pub(super) fn membership(&mut self, columns: &[Column], depth: usize) -> Expr {
        let other = self.relation(depth);
        let (inner, source) = (other.columns, other.source);
        let condition = self.condition(columns, &inner);
        let (mut filter, _) = self.filter(&inner, 0);
        if let (Some(on), true) = (condition, self.one_in(2)) {
            filter.extend(on);
            let one = Expr::new(Type::Int, "1", Vec::new());
            let select =
                Select { items: vec![(one, "one".to_owned())], from: vec![source], filter, ..Select::default() };
            let head = self.pick(&["EXISTS ¶", "NOT EXISTS ¶"]);
            return Expr::with_query(Type::Bool, head, Vec::new(), Query::select(select));
        }
        let comparable: Vec<&Column> = inner.iter().filter(|column| column.of != Type::Other).collect();
        if comparable.is_empty() {
            return self.literal(Type::Bool);
        }
        let column = self.pick(&comparable).clone();
        let value = self.expr(column.of, columns, 1);
        let item = (column.expr(), "item".to_owned());
        let select = Select { items: vec![item], from: vec![source], filter, ..Select::default() };
        let head = self.pick(&["§ IN ¶", "§ IN ¶", "§ NOT IN ¶"]);
        Expr::with_query(Type::Bool, head, vec![value], Query::select(select))
    }

    /// One value of another relation, or of those of its rows that belong to this row.
    pub(super) fn scalar_query(&mut self, columns: &[Column]) -> Expr {
        let other = self.relation(0);
        let mut filter = Vec::new();
        if self.one_in(2) {
            filter.extend(self.condition(columns, &other.columns).into_iter().flatten().take(1));
        }
        let call = self.call(&other.columns);
        let of = call.of;
        let items = vec![(call, "value".to_owned())];
        let select = Select { items, from: vec![other.source], filter, ..Select::default() };
        Expr::with_query(of, "¶", Vec::new(), Query::select(select))
    }
}
