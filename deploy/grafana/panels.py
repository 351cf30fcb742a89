"""The kinds of panels and variables that the dashboards use."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
TAG = "lineside"
# The lowest value for each colour.
Steps = Mapping[str, float]
# (expression, legend)
Query = tuple[str, str]
Panel = timeseries.Panel | stat.Panel | heatmap.Panel | bargauge.Panel | statetimeline.Panel


def _target(number: int, expr: str, legend: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().ref_id(chr(ord("A") + number)).datasource(SOURCE)
    return made.expr(expr).legend_format(legend)


def _thresholds(steps: Steps, base: str = "green") -> dashboard.ThresholdsConfig:
    values = [Threshold(value=None, color=base)]
    values += [Threshold(value=value, color=color) for color, value in steps.items()]
    return dashboard.ThresholdsConfig().steps(values)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = 8,
    stacked: bool = False,
    limit: float | None = None,
) -> timeseries.Panel:
    """Make a panel of lines over time, or of stacked areas; `limit` is drawn as a line."""
    panel = timeseries.Panel().title(title).description(description).unit(unit)
    panel.datasource(SOURCE).span(span).height(8).min(0).show_points(VisibilityMode.NEVER)
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
        panel.fill_opacity(30)
    if limit is not None:
        panel.thresholds(_thresholds({"red": limit}))
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    for number, (expr, legend) in enumerate(queries):
        panel.with_target(_target(number, expr, legend))
    return panel


def figure(
    title: str,
    description: str,
    unit: str,
    expr: str,
    steps: Steps | None = None,
    *,
    base: str = "green",
    texts: Mapping[str, str] | None = None,
) -> stat.Panel:
    """Make a panel of the current value in large digits, or of its text in `texts`.

    The colour is that of the highest step reached in `steps`, or `base` below the first.
    """
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    panel.span(3).height(4).thresholds(_thresholds(steps or {}, base))
    panel.graph_mode(BigValueGraphMode.NONE if texts else BigValueGraphMode.AREA)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if texts:
        panel.mappings([texts_of(texts)])
    return panel.with_target(_target(0, expr, ""))


def texts_of(texts: Mapping[str, str]) -> ValueMapping:
    """Map values to texts."""
    return ValueMap({value: ValueMappingResult(text=text) for value, text in texts.items()})


def heat(title: str, description: str, unit: str, expr: str, *, span: int = 8) -> heatmap.Panel:
    """Make a panel of the counts in each bucket of a histogram, over time."""
    panel = heatmap.Panel().title(title).description(description).datasource(SOURCE)
    panel.span(span).height(8).calculate(False)
    panel.y_axis(heatmap.YAxisConfig().unit(unit))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges"))
    panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LINEAR))
    target = _target(0, expr, "{{le}}").format(PromQueryFormat.HEATMAP)
    return panel.with_target(target)


def bars(
    title: str, description: str, unit: str, query: Query, steps: Steps, *, span: int = 8
) -> bargauge.Panel:
    """Make a panel with a bar for the newest value of each series."""
    panel = bargauge.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    panel.span(span).height(8).min(0).thresholds(_thresholds(steps))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(_target(0, *query).instant())


def states(
    title: str, description: str, texts: Mapping[str, str], query: Query, *, span: int = 8
) -> statetimeline.Panel:
    """Make a panel with a coloured band for each series, over time."""
    panel = statetimeline.Panel().title(title).description(description).datasource(SOURCE)
    panel.span(span).height(8).thresholds(_thresholds({"red": 1})).mappings([texts_of(texts)])
    panel.line_width(0).fill_opacity(70)
    return panel.with_target(_target(0, *query))


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Make a variable of all values that `query` returns; several or all can be chosen."""
    made = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    made.multi(True).include_all(True).all_value(".*").sort(VariableSort.ALPHABETICAL_ASC)
    made.current(VariableOption(selected=True, text="All", value="$__all"))
    return made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


VARIABLES = {
    "instance": ("Device", "label_values(lineside_build_info, instance)"),
    "model": ("Model", 'label_values(lineside_model_info{instance=~"$instance"}, model)'),
    "camera": (
        "Camera",
        'label_values(lineside_camera_frames_total{instance=~"$instance"}, camera)',
    ),
    "stage": ("Stage", "label_values(lineside_stage_duration_seconds_count, stage)"),
}


def board(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[str],
    rows: Mapping[str, Sequence[Panel]],
) -> dashboard.Dashboard:
    """Make a dashboard of `rows` by their titles, with the named VARIABLES."""
    made = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).readonly()
    made.timezone("browser").refresh("30s").time("now-3h", "now")
    made.tooltip(DashboardCursorSync.CROSSHAIR)
    others = dashboard.DashboardLink("Lineside").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    made.link(others.keep_time(True).include_vars(True))
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    made.with_variable(source)
    for name in variables:
        made.with_variable(_choice(name, *VARIABLES[name]))
    number = 0
    for heading, panels in rows.items():
        number += 1
        made.with_row(dashboard.Row(heading).id(number))
        for panel in panels:
            number += 1
            made.with_panel(panel.id(number))
    return made
